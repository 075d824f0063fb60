package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// A socket for another process: "TCP eth1 10.11.12.70:80", and whether it would
// share its port.
const holdPort = "GATEHOUSE_TEST_HOLD_PORT"

func TestMain(m *testing.M) {
	if text := os.Getenv(holdPort); text != "" {
		err := hold(strings.Fields(text))
		fmt.Println(err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
		return
	}
	os.Exit(m.Run())
}

func hold(text []string) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		_ = c.Control(func(fd uintptr) {
			if text[1] != "any" {
				_ = unix.BindToDevice(int(fd), text[1])
			}
			if len(text) > 3 {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		})
		return nil
	}}
	network := strings.ToLower(text[0])
	if strings.HasPrefix(text[2], "0.0.0.0") {
		network += "4"
	}
	var err error
	if text[0] == "UDP" {
		_, err = config.ListenPacket(context.Background(), network, text[2])
	} else {
		_, err = config.Listen(context.Background(), network, text[2])
	}
	return err
}

// another has a process hold a socket until it is let go, and returns what kept
// it from that.
func another(t *testing.T, socket string) (err string, letGo func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holdPort+"="+socket)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	letGo = func() { in.Close(); _ = cmd.Wait() }
	t.Cleanup(letGo)
	line, _ := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line), letGo
}

// Another program that has the port is noticed, though a neighbour is there and
// the program would share it.
func TestNetnsNeighboursDoNotShareWithOthers(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		for _, share := range []string{"", " share"} {
			for _, c := range []struct{ first, other, then string }{
				{"", "eth1 " + vip4 + ":80", vip4},
				{"", "any " + vip4 + ":80", vip4},
				{vip4, "eth1 " + far4 + ":80", ""},
				{vip4, "any " + far4 + ":80", ""},
				{"", "eth1 [" + vip6 + "]:80", vip6},
				{vip6, "eth1 0.0.0.0:80", ""},
				{far4, "any [" + vip6 + "]:80", ""},
			} {
				t.Run(fmt.Sprint(protocol, share, " ", c), func(t *testing.T) {
					netnstest.Run(t, func() {
						home, _ := newSite(t)
						addVIPs(t)
						r := newRelay(t, Options{})
						all := neighboursAt(t, protocol, append(vips, "")...)
						// The other one is first: then it has a share, and not the only one.
						said, letGo := another(t, string(protocol)+" "+c.other+share)
						if said != "<nil>" {
							t.Fatal(said)
						}
						applied := r.Apply([]edge.Frontend{all[c.first]})
						if applied[0].Error != "" && c.first != "" {
							t.Fatal(applied[0].Error)
						}
						wanted := []edge.Frontend{all[c.first], all[c.then]}
						doors := r.Apply(wanted)
						if c.first != "" && doors[0].Error != "" {
							t.Error(doors[0].Error)
						}
						if !strings.Contains(doors[1].Error, "address already in use: port 80 is held by relay.test (process ") {
							t.Errorf("beside %s: %+v", c.other, doors[1])
						}
						letGo()
						for _, d := range r.Apply(wanted) {
							if d.Error != "" {
								t.Errorf("after it has gone: %s", d.Error)
							}
						}
						if got := whoAnswers(t, home, protocol, vip4); (c.first == vip4 || c.then == vip4) && got != vip4 {
							t.Errorf("%s: %q", vip4, got)
						}
					})
				})
			}
		}
	}
}

// Whoever comes later does not get what is the doors' own: what comes to their
// interface.
func TestNetnsNeighboursKeepWhatTheyHave(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		for _, order := range [][]string{{"", vip4}, {vip4, ""}} {
			t.Run(fmt.Sprint(protocol, order), func(t *testing.T) {
				netnstest.Run(t, func() {
					home, _ := newSite(t)
					addVIPs(t)
					r := newRelay(t, Options{})
					all := neighboursAt(t, protocol, "", vip4)
					applyAll(t, r, all, order)
					everywhere := []string{"any :80", "any " + vip4 + ":80", "eth1 :80", "eth1 " + vip4 + ":80", "eth1 [" + vip6 + "]:80"}
					for _, at := range everywhere {
						if said, letGo := another(t, string(protocol)+" "+at); !strings.Contains(said, "address already in use") {
							t.Errorf("%s: %q", at, said)
							letGo()
						}
					}
					// A second gatehouse has no neighbours there.
					second := newRelay(t, Options{})
					for _, d := range second.Apply([]edge.Frontend{all[vip4], all[""]}) {
						if !strings.Contains(d.Error, "address already in use") {
							t.Errorf("a second one: %+v", d)
						}
					}
					// Nor does who would share: of TCP. Sockets of UDP doors share anyway, and
					// what is for other interfaces is not theirs.
					if protocol == edge.UDP {
						everywhere = everywhere[:1]
					}
					for _, at := range everywhere {
						if said, _ := another(t, string(protocol)+" "+at+" share"); (said == "<nil>") != (protocol == edge.UDP) {
							t.Errorf("%s, shared: %q", at, said)
						}
					}
					for range 10 {
						for addr, want := range map[string]string{homeEdge4: "own", vip4: vip4, vip6: "own"} {
							if got := whoAnswers(t, home, protocol, addr); got != want {
								t.Errorf("%s: %q", addr, got)
							}
						}
					}
				})
			})
		}
	}
}
