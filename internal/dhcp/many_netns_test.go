package dhcp

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/leases"
	"e13.dev/gatehouse/internal/netnstest"
)

// wide is what is planned from for a thousand machines on br0.
func wide(t *testing.T, probe bool) Inputs {
	t.Helper()
	i, err := net.InterfaceByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	return Inputs{
		Config: &config.Config{
			Zones: []edge.Zone{{Name: "cluster", Interfaces: []string{"br0"}}},
			DHCP:  []config.DHCP{{Zone: "cluster", Pools: []edge.Range{span("10.0.4.0-10.0.7.255")}, LeaseTime: 12 * time.Hour, Probe: probe}},
		},
		Interfaces: []edge.Interface{{Name: "br0", Index: i.Index, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/16")}}},
	}
}

// crowd is many machines that want an address, and say so again until they have it.
type crowd struct {
	t    *testing.T
	at   *station
	n    int
	has  map[string]netip.Addr // by hardware address
	from map[netip.Addr]string
}

func machine(n int) net.HardwareAddr { return net.HardwareAddr{2, 1, 0, 0, byte(n >> 8), byte(n)} }

func (c *crowd) say(kind dhcpv4.MessageType, mac net.HardwareAddr, offer netip.Addr) {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: mac, Options: dhcpv4.Options{}}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	if offer.IsValid() {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.AsSlice()))
		m.UpdateOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 0, 1}))
	}
	c.at.say(m, false)
}

// until runs until so many machines have an address.
func (c *crowd) until(count int) {
	c.t.Helper()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	over := time.After(2 * patience)
	ask := func() {
		for n := range c.n {
			if mac := machine(n); !c.has[mac.String()].IsValid() {
				c.say(dhcpv4.MessageTypeDiscover, mac, netip.Addr{})
			}
		}
	}
	ask()
	for len(c.has) < count {
		select {
		case m := <-c.at.heard:
			mac, a := m.ClientHWAddr.String(), addr4(m.YourIPAddr)
			switch m.MessageType() {
			case dhcpv4.MessageTypeOffer:
				if !c.has[mac].IsValid() {
					c.say(dhcpv4.MessageTypeRequest, m.ClientHWAddr, a)
				}
			case dhcpv4.MessageTypeAck:
				if other := c.from[a]; other != "" && other != mac {
					c.t.Fatalf("%s has %s, and %s gets it", other, a, mac)
				}
				if old := c.has[mac]; old.IsValid() && old != a {
					c.t.Fatalf("%s has %s, and gets %s", mac, old, a)
				}
				c.has[mac], c.from[a] = a, mac
			default:
			}
		case <-again.C:
			ask()
		case <-over:
			c.t.Fatalf("%d of %d have an address", len(c.has), count)
		}
	}
}

func TestNetnsAThousandAtOnceGetAnAddressEach(t *testing.T) {
	netnstest.Run(t, func() {
		bridge(t)
		netnstest.AddrDel(t, nil, "br0", "10.0.0.1/24")
		netnstest.Addr(t, nil, "br0", "10.0.0.1/16")
		s := &served{t: t, dir: t.TempDir(), in: wide(t, true)}
		s.quiet = true
		s.start()
		defer func() { s.stop() }()
		c := &crowd{t: t, at: newStation(t, plug(t, 0xf0)), n: 1000, has: map[string]netip.Addr{}, from: map[netip.Addr]string{}}
		c.until(c.n)
		if len(c.from) != c.n {
			t.Errorf("%d addresses of %d machines", len(c.from), c.n)
		}
		s.stop()
		s.start() // they are there the next time
		all := s.Leases(time.Now())
		for _, l := range all {
			if c.has[l.MAC] != l.Addr {
				t.Errorf("%s has %s, and the lease is %v", l.MAC, c.has[l.MAC], l)
			}
		}
		if len(all) != c.n {
			t.Errorf("%d leases of %d machines", len(all), c.n)
		}
	})
}

// childDir is the environment variable that makes a server of the test.
const childDir = "GATEHOUSE_DHCP_CHILD"

// TestNetnsChildServes is the server that TestNetnsKilledAtAnyMoment kills.
func TestNetnsChildServes(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("is part of another test")
	}
	store, all, err := leases.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(slog.New(slog.DiscardHandler), all, store, func() {})
	zones, _ := Plan(wide(t, false))
	if problems := server.Apply(zones); len(problems) > 0 {
		t.Fatal(problems)
	}
	fmt.Println("SERVES")
	_ = store.Run(context.Background())
}

// TestNetnsKilledAtAnyMoment kills the server again and again while machines ask:
// who was told of an address has it in the file, and nobody else gets it.
func TestNetnsKilledAtAnyMoment(t *testing.T) {
	netnstest.Run(t, func() {
		bridge(t)
		netnstest.AddrDel(t, nil, "br0", "10.0.0.1/24")
		netnstest.Addr(t, nil, "br0", "10.0.0.1/16")
		dir := t.TempDir()
		c := &crowd{t: t, at: newStation(t, plug(t, 0xf0)), n: 400, has: map[string]netip.Addr{}, from: map[netip.Addr]string{}}
		for kills := 0; len(c.has) < c.n; kills++ {
			cmd := exec.Command(os.Args[0], "-test.run=^TestNetnsChildServes$")
			cmd.Env = append(os.Environ(), childDir+"="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "SERVES" {
				t.Log(lines.Text())
			}
			c.until(min(len(c.has)+1+rand.IntN(60), c.n))
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			for len(c.at.heard) > 0 { // what was on its way was said
				m := <-c.at.heard
				if m.MessageType() == dhcpv4.MessageTypeAck {
					c.has[m.ClientHWAddr.String()], c.from[addr4(m.YourIPAddr)] = addr4(m.YourIPAddr), m.ClientHWAddr.String()
				}
			}
			data, err := os.ReadFile(filepath.Join(dir, "leases"))
			if err != nil {
				t.Fatal(err)
			}
			content, err := leases.Decode(data)
			if err != nil || content.Damaged > 0 {
				t.Fatalf("after %d kills: %v, %d damaged", kills+1, err, content.Damaged)
			}
			kept := map[string]netip.Addr{}
			for _, l := range content.Leases {
				kept[l.MAC] = l.Addr
			}
			for mac, a := range c.has {
				if kept[mac] != a {
					t.Fatalf("after %d kills: %s has %s, and the file says %s", kills+1, mac, a, kept[mac])
				}
			}
		}
	})
}
