package host

import (
	"context"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/netnstest"
)

func TestNetnsTransparentSockets(t *testing.T) {
	netnstest.Run(t, func() {
		there := func(when string, want bool) {
			t.Helper()
			if got, err := TransparentSockets(); got != want || err != nil {
				t.Errorf("%s: TransparentSockets = %t, %v; want %t", when, got, err, want)
			}
		}
		there("at first", false)
		claim, err := Claim()
		if err != nil {
			t.Fatal(err)
		}
		there("claimed", true)
		claim.Close()
		there("claim gone", false)

		transparent := func(network, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				if err := unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
					t.Errorf("%s: %v", network, err)
				}
			})
		}
		for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
			listening := net.ListenConfig{Control: transparent}
			l, err := listening.Listen(context.Background(), "tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			there("a listener", false)
			u, err := net.ListenPacket("udp", host)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := net.Dial("udp", u.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			there("plain sockets", false)
			for network, addr := range map[string]string{"tcp": l.Addr().String(), "udp": u.LocalAddr().String()} {
				dialer := net.Dialer{Control: transparent}
				c, err := dialer.Dial(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				there(network+" to "+addr, true)
				if tcp, ok := c.(*net.TCPConn); ok {
					tcp.SetLinger(0)
				}
				c.Close()
				if network == "tcp" {
					accepted, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					accepted.Close()
				}
				there(network+" closed", false)
			}
			plain.Close()
			u.Close()
			l.Close()
		}
	})
}
