package netnstest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// Site is an edge, which is the namespace of the test, with clients on one side
// and a pod on the other. The way from the pod to everywhere else is by its
// node, and from there by the edge.
//
//	home client 10.11.12.7, fd12::7 --- eth1 10.11.12.32, fd12::32  edge
//	edge  eth0 10.0.0.1, fd00::1 --- eth0 10.0.0.101, fd00::101  node
//	node  pod0 10.244.1.1, fd44::1 --- eth0 10.244.1.5, fd44::5  pod
type Site struct{ Home, Node, Pod *NS }

// NewSite makes a Site. The edge and the node forward.
func NewSite(t *testing.T) Site {
	t.Helper()
	s := Site{New(t), New(t), New(t)}
	Cable(t, nil, "eth1", s.Home, "eth0")
	Cable(t, nil, "eth0", s.Node, "eth0")
	Cable(t, s.Node, "pod0", s.Pod, "eth0")
	for _, a := range []struct {
		ns           *NS
		device       string
		addr4, addr6 string
	}{
		{nil, "eth1", "10.11.12.32/24", "fd12::32/64"},
		{s.Home, "eth0", "10.11.12.7/24", "fd12::7/64"},
		{nil, "eth0", "10.0.0.1/24", "fd00::1/64"},
		{s.Node, "eth0", "10.0.0.101/24", "fd00::101/64"},
		{s.Node, "pod0", "10.244.1.1/24", "fd44::1/64"},
		{s.Pod, "eth0", "10.244.1.5/24", "fd44::5/64"},
	} {
		Addr(t, a.ns, a.device, a.addr4)
		Addr(t, a.ns, a.device, a.addr6)
	}
	for _, r := range []struct {
		ns      *NS
		to, via string
	}{
		{s.Home, "default", "10.11.12.32"},
		{s.Home, "::/0", "fd12::32"},
		{nil, "10.244.1.0/24", "10.0.0.101"},
		{nil, "fd44::/64", "fd00::101"},
		{s.Node, "default", "10.0.0.1"},
		{s.Node, "::/0", "fd00::1"},
		{s.Pod, "default", "10.244.1.1"},
		{s.Pod, "::/0", "fd44::1"},
	} {
		Route(t, r.ns, r.to, r.via)
	}
	for _, ns := range []*NS{nil, s.Node} {
		Setting(t, ns, "net/ipv4/ip_forward", "1")
		Setting(t, ns, "net/ipv6/conf/all/forwarding", "1")
	}
	return s
}

// Setting writes what sysctl would, such as "net/ipv4/ip_forward".
func Setting(t *testing.T, ns *NS, name, value string) {
	t.Helper()
	ns.Do(t, func() {
		// The thread's own view: /proc/sys/net is that of the namespace one is in.
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	})
}

// Mirror listens on a port, for TCP and UDP, and tells who comes which address
// it comes from. To TCP clients it then says back what they say.
func Mirror(t *testing.T, ns *NS, port int) {
	t.Helper()
	ns.Do(t, func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				} else if err != nil {
					continue
				}
				go func() {
					defer c.Close()
					fmt.Fprintln(c, hostOf(c.RemoteAddr()))
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			b := make([]byte, 2000)
			for {
				_, from, err := u.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				} else if err != nil {
					continue
				}
				_, _ = u.WriteTo([]byte(hostOf(from)+"\n"), from)
			}
		}()
	})
}

func hostOf(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
}

// LookIn asks a Mirror who it takes a host for: by "tcp" or "udp", from a
// namespace.
func LookIn(t *testing.T, ns *NS, network, addr string) (seen string, err error) {
	t.Helper()
	ns.Do(t, func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, addr, 3*time.Second); err != nil {
			return
		}
		defer c.Close()
		if err = c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return
		}
		if network == "udp" {
			if _, err = c.Write([]byte("who am I")); err != nil {
				return
			}
		}
		seen, err = bufio.NewReader(c).ReadString('\n')
		seen = strings.TrimSpace(seen)
	})
	return seen, err
}
