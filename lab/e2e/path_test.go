package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nodes and pods reach a Service by the names that its clients use, also when it
// is themselves whom they reach, as who asks for a certificate does first. They
// see this machine's address then, as the plan has said; everybody else is seen
// with his own.
func TestHairpin(t *testing.T) {
	const port = 8700
	const ns = "public"
	apply(t, deployment(ns, "self", "self", "w1", 1)+echoPods(ns, "echo", "w1", 1))
	t.Cleanup(func() { remove(t, "service,deployment", "-n", ns, "--all") })
	var made []string
	for i, target := range []string{"pod", "nodePort"} {
		made = append(made, "self-"+strings.ToLower(target))
		apply(t, on(nat, annotated(service(ns, made[i], "self", "internet,home,cluster", "Local", port+i), "gatehouse.e13.dev/target: "+target)))
	}
	apply(t, on(nat, strings.Replace(udpService(ns, "udp", "pod", port, ""), `"home"`, "'home,cluster'", 1)))
	awaitPods(t, ns, "self", "echo")
	pod := ns + "/" + kubectl(t, "get", "pods", "-n", ns, "-l", "app=self", "-o", "jsonpath={.items[0].metadata.name}")
	for i, name := range made {
		t.Run(name, func(t *testing.T) {
			key, at := ns+"/"+name, func(address string) string { return fmt.Sprintf("%s:%d", address, port+i) }
			eventually(t, 10*time.Second, "it is up", func() error { return backendsUp(t, key) })
			for zone, own := range map[string]bool{"home": true, "internet": true, "cluster": false} {
				address, _, isSeen := planned(t, key, zone)
				if isSeen != own || strings.HasPrefix(address, "this machine's address: masqueraded") == own {
					t.Errorf("plan says that in zone %s the pod sees %q (%v)", zone, address, isSeen)
				} else {
					t.Logf("in zone %s the pod sees %s", zone, address)
				}
			}
			sees(t, "home1", at(homeAddr), home1Addr)
			sees(t, "home2", at(homeAddr), home2Addr)
			sees(t, "inet", at(publicAddr), inetAddr)
			for _, host := range []string{"w1", "w2", "cp", pod} {
				sees(t, host, at(clusterAddr), clusterAddr)
				sees(t, host, at(internetAddr), clusterAddr)
			}
			// By way of the router, which brings it back to the Internet's address.
			sees(t, pod, at(publicAddr), "10.11.12.1")
			sees(t, "home1", at(homeAddr), home1Addr)
		})
	}
	t.Run("UDP", func(t *testing.T) {
		for host, address := range map[string]string{"home1": homeAddr, "w1": clusterAddr, "w2": internetAddr, pod: clusterAddr} {
			client := clusterAddr
			if host == "home1" {
				client = home1Addr
			}
			eventually(t, 5*time.Second, host+" is answered", func() error {
				_, from, err := whence(host, fmt.Sprintf("%s:%d", address, port))
				return errors.Join(err, want(from, client))
			})
		}
	})
}

// Where a link takes smaller packets than client and pod do, both are told, by
// ICMP that finds its way through the rewritten addresses: connections come
// through in both directions, and a client of UDP hears that its datagram is too
// big. It hears, too, that nobody listens.
func TestPacketsTooBig(t *testing.T) {
	const port, link, wayBack = 8705, 1400, 1300
	ns := namespace(t)
	apply(t, echoPods(ns, "echo", "w1", 1)+deployment(ns, "web", "web", "w1", 1))
	awaitPods(t, ns, "echo", "web")
	apply(t, on(nat, annotated(service(ns, "tcp", "echo", "home", "Local", port), "gatehouse.e13.dev/target: pod")+
		udpService(ns, "udp", "pod", port, "")+
		strings.Replace(udpService(ns, "nobody", "pod", port+1, ""), "selector: {app: echo}", "selector: {app: web}", 1)))
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 5*time.Second, "open", echoed("home1", at))
	eventually(t, 5*time.Second, "open for UDP", answers(t, "home1", at))
	eventually(t, 5*time.Second, "a client of nobody is told so", func() error {
		how, err := unanswered(asker(t, "home1", fmt.Sprintf("%s:%d", homeAddr, port+1)))
		if err == nil {
			err = want(how, "ICMP port unreachable")
		}
		return err
	})

	run := func(host string, argv ...string) string {
		out, err := lab.Exec(context.Background(), host, argv...)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	linkTakes := func(bytes string) {
		run("edge", "ip", "link", "set", "eth0", "mtu", bytes)
		run("w1", "ip", "link", "set", "eth0", "mtu", bytes)
	}
	t.Cleanup(func() {
		linkTakes("1500")
		run("edge", "ip", "route", "del", home1Addr)
		run("home1", "ip", "route", "flush", "cache")
	})
	linkTakes(fmt.Sprint(link))
	run("edge", "ip", "route", "add", home1Addr, "dev", "eth1", "mtu", fmt.Sprint(wayBack))

	c, err := ring("home1", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	sent := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
	_ = c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		_, _ = c.conn.Write(sent)
		_ = c.conn.(*net.TCPConn).CloseWrite()
	}()
	if back, err := io.ReadAll(c.read); err != nil || !bytes.Equal(back, sent) {
		t.Fatalf("%d of %d bytes came back: %v", len(back), len(sent), err)
	}
	if mtu, err := sockopt(c.conn.(*net.TCPConn), unix.IP_MTU); err != nil || mtu != link {
		t.Errorf("the client's packets may have %d bytes, want %d: %v", mtu, link, err)
	}
	pod := ns + "/" + kubectl(t, "get", "pods", "-n", ns, "-l", "app=echo", "-o", "jsonpath={.items[0].metadata.name}")
	if way := run(pod, "ip", "route", "get", home1Addr); !strings.Contains(way, fmt.Sprintf("mtu %d", wayBack)) {
		t.Errorf("the pod's packets to the client may have more than %d bytes: %s", wayBack, way)
	}

	// Another address of the edge box, of which the client has learnt nothing yet.
	client := asker(t, "home1", fmt.Sprintf("%s:%d", clusterAddr, port))
	if _, err := question(client, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := setSockopt(client.(*net.UDPConn), unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, link)
	if _, err := client.Write(big); err != nil {
		t.Fatalf("a datagram that the client's own link takes: %v", err)
	}
	eventually(t, 3*time.Second, "the client is told that it was too big", func() error {
		mtu, err := sockopt(client.(*net.UDPConn), unix.IP_MTU)
		if err == nil {
			err = want(fmt.Sprint(mtu), fmt.Sprint(link))
		}
		return err
	})
	if _, err := client.Write(big); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("it is sent again: %v", err)
	}
	eventually(t, 3*time.Second, "a smaller one is answered", func() error { _, err := question(client, time.Second); return err })
}

func sockopt(conn syscall.Conn, option int) (value int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, option) })
	return value, errors.Join(cerr, err)
}

func setSockopt(conn syscall.Conn, option, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, option, value) })
	return errors.Join(cerr, err)
}

// Clients of both IP families get the backends of theirs, which see their own addresses.
func TestBothIPFamilies(t *testing.T) {
	const port, backends = 8710, 7120
	addresses := []string{fmt.Sprintf("10.0.0.101:%d", backends), fmt.Sprintf("[fd00:10::102]:%d", backends)}
	for i, address := range addresses {
		server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(answer{Pod: address, Client: r.RemoteAddr})
		})}
		listener := listen(t, fmt.Sprintf("w%d", i+1), address)
		go func() { _ = server.Serve(listener) }()
	}
	restoreConfig(t)
	if err := writeConfig(config + fmt.Sprintf("frontends:\n  - {name: both, zones: [home, internet], dataPlane: nat, port: %d, backends: [{address: %q}, {address: %q}]}\n", port, addresses[0], addresses[1])); err != nil {
		t.Fatal(err)
	}
	at := []string{fmt.Sprintf("%s:%d", homeAddr, port), fmt.Sprintf("[fd00:11:12::32]:%d", port)}
	for i, client := range []string{home1Addr, "fd00:11:12::101"} {
		eventually(t, 10*time.Second, "open at "+at[i], opened("home1", at[i]))
		for range 20 {
			a, err := get("home1", at[i], 2*time.Second)
			if ip, _, _ := net.SplitHostPort(a.Client); err != nil || a.Pod != addresses[i] || ip != client {
				t.Fatalf("%s is answered by %s, which sees %s: %v", client, a.Pod, a.Client, err)
			}
		}
	}
	sees(t, "inet", fmt.Sprintf("%s:%d", publicAddr, port), inetAddr)
}

// An SCTP association begins through the kernel: the client's INIT reaches each
// of the backends, and their INIT ACK the client, from the address that it has
// asked. Kernels need not have SCTP for that, and this test does not: it makes
// the packets itself.
func TestSCTP(t *testing.T) {
	const port, backends = 8715, 7121
	ns := namespace(t)
	for i, worker := range []string{"w1", "w2", "w3"} {
		startAssociates(t, worker, fmt.Sprintf("10.0.0.10%d", i+1), backends)
	}
	s := bare(ns, "sctp", "SCTP", port, backends, map[string]string{"gatehouse.e13.dev/data-plane": nat})
	create(t, s, ready, ready, ready)

	socket := rawSCTP(t, "home1", "0.0.0.0")
	edge := &net.IPAddr{IP: net.ParseIP(homeAddr)}
	from := uint16(1000)
	associate := func() (tag uint32, err error) {
		from++
		if _, err := socket.WriteTo(sctpPacket(from, port, 0, sctpInit, uint32(from)), edge); err != nil {
			return 0, err
		}
		_ = socket.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		buf := make([]byte, 1500)
		for {
			n, sender, err := socket.ReadFrom(buf)
			if err != nil {
				return 0, err
			}
			p := buf[:n]
			if n < 20 || binary.BigEndian.Uint16(p[2:]) != from {
				continue // for another one
			}
			if sender.String() != homeAddr || binary.BigEndian.Uint16(p) != port || p[12] != sctpInitAck || binary.BigEndian.Uint32(p[4:]) != uint32(from) {
				return 0, fmt.Errorf("%s answers %x", sender, p)
			}
			return binary.BigEndian.Uint32(p[16:]), nil
		}
	}
	eventually(t, 5*time.Second, "open", func() error { _, err := associate(); return err })
	counts := map[string]int{}
	for range 600 {
		tag, err := associate()
		if err != nil {
			t.Fatal(err)
		}
		counts[fmt.Sprintf("w%d", tag)]++
	}
	printShares(t, "SCTP", counts)
	equal(t, counts, 3)
	set(t, s, absent, ready, absent)
	eventually(t, 2*time.Second, "only one backend is left", func() error {
		for range 20 {
			if tag, err := associate(); err != nil || tag != 2 {
				return fmt.Errorf("w%d answers: %w", tag, err)
			}
		}
		return nil
	})
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Second, "closed", func() error {
		if _, err := associate(); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("it answers: %w", err)
		}
		return nil
	})
}

// Chunks of SCTP, by type.
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket has one INIT or INIT ACK. to is the verification tag that its
// receiver wants to see, own the one that the sender wants.
func sctpPacket(sourcePort, port uint16, to uint32, chunk byte, own uint32) []byte {
	var p []byte
	p = binary.BigEndian.AppendUint16(p, sourcePort)
	p = binary.BigEndian.AppendUint16(p, port)
	p = binary.BigEndian.AppendUint32(p, to)
	p = binary.BigEndian.AppendUint32(p, 0) // the checksum
	p = append(p, chunk, 0, 0, 20)
	p = binary.BigEndian.AppendUint32(p, own)
	p = binary.BigEndian.AppendUint32(p, 65536) // window
	p = binary.BigEndian.AppendUint16(p, 1)     // streams out
	p = binary.BigEndian.AppendUint16(p, 1)     // and in
	p = binary.BigEndian.AppendUint32(p, 1)     // sequence number
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

func rawSCTP(t *testing.T, host, address string) net.PacketConn {
	t.Helper()
	var socket net.PacketConn
	err := lab.Do(host, func() (err error) {
		socket, err = net.ListenPacket("ip4:132", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket
}

// startAssociates acknowledges each INIT on a worker; its tag is the worker's number.
func startAssociates(t *testing.T, worker, address string, port uint16) {
	t.Helper()
	socket := rawSCTP(t, worker, address)
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := socket.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p := buf[:n]
			if n < 20 || binary.BigEndian.Uint16(p[2:]) != port || p[12] != sctpInit {
				continue
			}
			_, _ = socket.WriteTo(sctpPacket(port, binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[16:]), sctpInitAck, uint32(worker[1]-'0')), from)
		}
	}()
}
