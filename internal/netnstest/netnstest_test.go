package netnstest

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestNetnsRunSeesOnlyLoopback(t *testing.T) {
	Run(t, func() {
		ifaces, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		if len(ifaces) != 1 || ifaces[0].Name != "lo" || ifaces[0].Flags&net.FlagUp == 0 {
			t.Errorf("interfaces = %v, want lo alone, up", ifaces)
		}
		seen := make(chan int)
		go func() { // on whatever thread
			others, _ := net.Interfaces()
			seen <- len(others)
		}()
		if n := <-seen; n != 1 {
			t.Errorf("another goroutine sees %d interfaces, want 1", n)
		}
	})
}

func TestNetnsCableCarriesBytes(t *testing.T) {
	Run(t, func() {
		a, b := New(t), New(t)
		Cable(t, a, "eth0", b, "eth0")
		Cable(t, nil, "toa", a, "eth1")
		Addr(t, a, "eth0", "10.0.0.1/24")
		Addr(t, b, "eth0", "10.0.0.2/24")
		Addr(t, nil, "toa", "10.0.1.1/24")
		Addr(t, a, "eth1", "10.0.1.2/24")
		hello := func(server, client *NS, addr string) {
			t.Helper()
			var ln net.Listener
			server.Do(t, func() {
				var err error
				if ln, err = net.Listen("tcp", addr); err != nil {
					t.Fatal(err)
				}
			})
			defer ln.Close()
			go func() {
				if c, err := ln.Accept(); err == nil {
					io.WriteString(c, "hello")
					c.Close()
				}
			}()
			client.Do(t, func() {
				c, err := net.DialTimeout("tcp", addr, 5*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
			})
		}
		hello(a, b, "10.0.0.1:80")
		hello(nil, a, "10.0.1.1:80")
		hello(a, nil, "10.0.1.2:80")
	})
}

func TestNetnsFatalInDoEndsTheTest(t *testing.T) {
	Run(t, func() {
		probe := new(testing.T)
		fatal := probe.FailNow
		ended := make(chan bool)
		ns := New(t)
		go func() {
			after := false
			defer func() { ended <- !after && probe.Failed() }()
			ns.Do(probe, fatal)
			after = true
		}()
		if !<-ended {
			t.Error("the goroutine that called Do went on after its function had failed the test")
		}
	})
}
