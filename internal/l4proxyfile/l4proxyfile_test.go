package l4proxyfile

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

var update = flag.Bool("update", false, "rewrite golden files")

func frontend(name string, l edge.Listen, backends ...string) edge.Frontend {
	f := edge.Frontend{Door: edge.Door{Protocol: edge.TCP, Listen: l}, Name: name}
	for _, b := range backends {
		f.Backends = append(f.Backends, edge.Backend{Addr: netip.MustParseAddrPort(b), Weight: 1})
	}
	return f
}

// checked sets how often a frontend's backends are probed.
func checked(f edge.Frontend, interval time.Duration) edge.Frontend {
	f.Health.Interval = interval
	return f
}

// site has one of everything.
func site() []edge.Frontend {
	udp := frontend("dns/dns:53", edge.Listen{Device: "eth1", Port: 53}, "10.0.0.50:53")
	udp.Protocol = edge.UDP
	idle := frontend("shop/chat:6667", edge.Listen{Device: "eth1", Port: 6667}, "10.0.0.53:6667")
	idle.IdleTimeout = 90 * time.Second
	drained := frontend("shop/web:443", edge.Listen{Device: "eth1", Port: 443}, "10.0.0.50:443", "10.0.0.49:443", "10.0.0.9:443", "10.0.0.50:443")
	drained.Backends[2].Weight = 0
	nobody := frontend("shop/old:81", edge.Listen{Device: "eth1", Port: 81}, "10.0.0.50:81")
	nobody.Backends[0].Weight = 0
	return []edge.Frontend{
		checked(drained, 1500*time.Millisecond), idle, udp, nobody,
		frontend("shop/empty:82", edge.Listen{Device: "eth1", Port: 82}),
		checked(frontend("shop/web:80", edge.Listen{Device: "veth0", Port: 80}, "10.0.0.50:80"), 100*time.Millisecond),
		checked(frontend("shop/web:80", edge.Listen{Device: "eth1", Port: 80}, "10.0.0.50:80"), 100*time.Millisecond),
		frontend("every\naddress", edge.Listen{Port: 8080}, "[::ffff:10.0.0.51]:8080"),
		checked(frontend("one/address:8081", edge.Listen{Addr: netip.MustParseAddr("10.11.12.32"), Port: 8081}, "10.0.0.52:8081"), 20*time.Second),
		frontend("both:8082", edge.Listen{Device: "eth1", Addr: netip.MustParseAddr("10.11.12.32"), Port: 8082}, "10.0.0.52:8082"),
		frontend("six:8083", edge.Listen{Addr: netip.MustParseAddr("fd00::1"), Port: 8083}, "[fd00::52]:8083"),
	}
}

func TestRender(t *testing.T) {
	frontends := site()
	got := Render(frontends)
	const golden = "testdata/site.yaml"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRenderIgnoresInputOrder(t *testing.T) {
	frontends := site()
	want := string(Render(frontends))
	for range 50 {
		rand.Shuffle(len(frontends), func(i, j int) { frontends[i], frontends[j] = frontends[j], frontends[i] })
		for _, f := range frontends {
			rand.Shuffle(len(f.Backends), func(i, j int) { f.Backends[i], f.Backends[j] = f.Backends[j], f.Backends[i] })
		}
		if got := string(Render(frontends)); got != want {
			t.Fatalf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestNoFrontendsCloseEverything(t *testing.T) {
	if got, want := string(Render(nil)), header+"frontends: []\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestWhatIsWrittenIsReadAsItWasMeant by gatehouse, which reads l4proxy files.
func TestWhatIsWrittenIsReadAsItWasMeant(t *testing.T) {
	frontends := site()
	for _, data := range [][]byte{Render(frontends), Render(nil)} {
		cfg, problems := config.Parse([]config.File{{Name: "l4proxy.yaml", Data: data}})
		if cfg == nil {
			t.Fatalf("%v\n%s", problems, data)
		}
		var again []edge.Frontend
		for _, f := range cfg.Frontends {
			l := edge.Listen{Device: f.Listen.Device, Port: f.Listen.Port}
			if f.Listen.Host != "" {
				l.Addr = netip.MustParseAddr(f.Listen.Host)
			}
			var backends []string
			for _, b := range f.Backends {
				addr, _ := b.Address.Addr()
				ap := netip.AddrPortFrom(addr, b.Address.Port)
				backends = append(backends, ap.String())
			}
			fe := frontend(nameOf(frontends, l), l, backends...)
			fe.IdleTimeout = f.IdleTimeout
			again = append(again, checked(fe, f.Health.Interval))
		}
		if got := Render(again); string(got) != string(data) {
			t.Errorf("got\n%s\nwant\n%s", got, data)
		}
	}
}

// nameOf finds the name, which is a comment in the file.
func nameOf(frontends []edge.Frontend, l edge.Listen) string {
	i := slices.IndexFunc(frontends, func(f edge.Frontend) bool {
		return f.Protocol == edge.TCP && f.Listen.Port == l.Port && (f.Listen.Device == l.Device || f.Listen.Addr.IsValid())
	})
	return frontends[i].Name
}
