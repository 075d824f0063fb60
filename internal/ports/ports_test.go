package ports

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// holding are sockets for another process: "tcp 0.0.0.0:22", "udp [::]:53 eth1".
const holding = "GATEHOUSE_TEST_HOLDING"

func TestMain(m *testing.M) {
	if list := os.Getenv(holding); list != "" {
		for s := range strings.SplitSeq(list, ",") {
			if _, err := hold(s); err != nil {
				fmt.Println(s, err)
				os.Exit(1)
			}
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func hold(text string) (io.Closer, error) {
	f := append(strings.Fields(text), "")
	network, addr, device := f[0], f[1], f[2]
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if device != "" {
			_ = c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) })
		}
		return err
	}}
	if strings.HasPrefix(network, "udp") {
		return config.ListenPacket(context.Background(), network, addr)
	}
	return config.Listen(context.Background(), network, addr)
}

// another starts a process that holds the sockets until the test ends.
func another(t *testing.T, sockets ...string) (pid int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holding+"="+strings.Join(sockets, ","))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the other process says %q", line)
	}
	return cmd.Process.Pid
}

func all(uint16) bool { return true }

func door(protocol edge.Protocol, device string, port uint16) edge.Door {
	return edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Port: port}}
}

func TestNetnsTaken(t *testing.T) {
	netnstest.Run(t, func() {
		other := netnstest.New(t)
		for _, name := range []string{"eth0", "eth1"} {
			netnstest.Cable(t, nil, name, other, name)
		}
		netnstest.Addr(t, nil, "eth0", "10.0.0.1/24")
		netnstest.Addr(t, nil, "eth0", "fd00::1/64")
		netnstest.Eventually(t, 10e9, "fd00::1 can be bound", func() bool {
			l, err := net.Listen("tcp", "[fd00::1]:1")
			if err == nil {
				l.Close()
			}
			return err == nil
		})
		pid := another(t, "tcp4 0.0.0.0:1", "tcp6 [::]:2", "tcp 10.0.0.1:3", "tcp [fd00::1]:4", "tcp :5 eth1", "tcp :6 eth0",
			"tcp 127.0.0.1:7", "tcp [::1]:8", "tcp4 127.0.0.53:9", "tcp [::ffff:10.0.0.1]:10", "tcp 127.0.0.1:11", "tcp 10.0.0.1:11",
			"udp :20", "udp 127.0.0.1:21", "udp 10.0.0.1:23", "udp :24 eth0", "udp :25 eth1", "udp 255.255.255.255:26")
		// Of this process: one that both have on devices of their own, and one that
		// only it has.
		for _, own := range []string{"tcp :6 eth1", "tcp :30"} {
			l, err := hold(own)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		}
		connected, err := net.DialUDP("udp", &net.UDPAddr{Port: 40}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 20})
		if err != nil {
			t.Fatal(err)
		}
		defer connected.Close()

		var doors []edge.Door
		for port := range uint16(50) {
			doors = append(doors, door(edge.TCP, "eth1", port), door(edge.UDP, "eth1", port), door(edge.SCTP, "eth1", port))
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		name := strings.TrimSpace(string(comm))
		want := map[edge.Door]string{}
		for protocol, ports := range map[edge.Protocol][]uint16{edge.TCP: {1, 2, 3, 4, 5, 10, 11}, edge.UDP: {20, 23, 25}} {
			for _, port := range ports {
				want[door(protocol, "eth1", port)] = fmt.Sprintf("listen on @eth1:%d: address already in use: port %d is held by %s (process %d)", port, port, name, pid)
			}
		}
		if got := Taken(doors); !maps.Equal(got, want) {
			t.Errorf("Taken = %v\nwant    %v", got, want)
		}
		if got := Taken(doors, pid); len(got) != 0 {
			t.Errorf("with the other process among ours: %v", got)
		}
		// Without a device all of its packets are the door's.
		for listen, taken := range map[edge.Listen]bool{
			{Port: 6}: true, {Port: 7}: false,
			{Port: 3, Addr: netip.MustParseAddr("10.0.0.1")}: true, {Port: 3, Addr: netip.MustParseAddr("10.0.0.2")}: false,
			{Port: 1, Addr: netip.MustParseAddr("10.0.0.1")}: false, {Port: 2, Addr: netip.MustParseAddr("fd00::1")}: false,
			{Port: 4, Addr: netip.MustParseAddr("fd00::1"), Device: "eth1"}: true, {Port: 10, Addr: netip.MustParseAddr("10.0.0.1"), Device: "eth1"}: true,
			{Port: 7, Addr: netip.MustParseAddr("127.0.0.1")}: true, {Port: 5, Device: "eth9"}: false, {Port: 1, Device: "eth9"}: true,
		} {
			if _, got := Taken([]edge.Door{{Protocol: edge.TCP, Listen: listen}})[edge.Door{Protocol: edge.TCP, Listen: listen}]; got != taken {
				t.Errorf("%v: taken %t, want %t", listen, got, taken)
			}
		}
		holders := fmt.Sprintf(": port 6 is held by %s (process %d), this gatehouse", name, pid)
		if got := ReadOwners().Holders(door(edge.TCP, "", 6)); got != holders {
			t.Errorf("Holders = %q, want %q", got, holders)
		}

		// The files say the same but for devices.
		for protocol, file := range map[edge.Protocol]string{edge.TCP: "/proc/thread-self/net/tcp", edge.UDP: "/proc/thread-self/net/udp"} {
			asked, err := diagSockets(protocol, all)
			if err != nil {
				t.Fatal(err)
			}
			for i := range asked {
				asked[i].device = 0
			}
			read := append(readSockets(file, listenState(protocol), all), readSockets(file+"6", listenState(protocol), all)...)
			byInode := func(a, b socket) int { return cmp.Compare(a.inode, b.inode) }
			slices.SortFunc(asked, byInode)
			slices.SortFunc(read, byInode)
			if len(read) < 6 || !slices.Equal(asked, read) {
				t.Errorf("%s: read %v\nasked %v", protocol, read, asked)
			}
		}
	})
}

func TestSCTPEndpointsAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eps")
	const text = ` ENDPT            SOCK             STY SST HBKT LPORT   UID INODE     LADDRS
ffff88017e0a0200 ffff880299f7fa00 2   10  29   11165   200 299689357 10.0.0.102 fd00:0000:0000:0000:0000:0000:0000:0070 
ffff88017e0a0400 ffff880299f7fb00 0   7   30   11166   200 299689358 0.0.0.0 
ffff88017e0a0600 ffff880299f7fc00 0   10  31   11167     0 299689359 0000:0000:0000:0000:0000:0000:0000:0000 
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []socket{
		{addr: netip.MustParseAddrPort("10.0.0.102:11165"), inode: "299689357"},
		{addr: netip.MustParseAddrPort("[fd00::70]:11165"), inode: "299689357"},
		{addr: netip.MustParseAddrPort("[::]:11167"), inode: "299689359"},
	}
	if got := readEndpoints(path, all); !reflect.DeepEqual(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}

// Every change asks, so it has to cost little while nothing is taken: of 20,000
// doors, beside as many listeners of this process.
func BenchmarkTaken(b *testing.B) {
	for _, listeners := range []int{0, 1000} {
		b.Run(fmt.Sprintf("listeners=%d", listeners), func(b *testing.B) {
			for range listeners {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
			}
			var doors []edge.Door
			for i := range 20000 {
				doors = append(doors, door(edge.TCP, "eth1", uint16(3000+i)))
			}
			for b.Loop() {
				Taken(doors)
			}
		})
	}
}
