package firewall

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// The order in which what is open is found changes nothing.
func TestCompileIgnoresInputOrder(t *testing.T) {
	in := Inputs{Config: parse(t, site), Addresses: []netip.Addr{addr("10.11.12.72"), addr("fd12::72")}}
	for i := range 50 {
		in.Frontends = append(in.Frontends, door(edge.DataPlaneProxy, edge.TCP, "eth1", "", uint16(1000+i/2), "service/a/b", []string{"10.0.0.0/8", "192.0.2.0/24"}[i%2]))
	}
	want := Compile(in)
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		random.Shuffle(len(in.Frontends), func(i, j int) { in.Frontends[i], in.Frontends[j] = in.Frontends[j], in.Frontends[i] })
		slices.Reverse(in.Addresses)
		random.Shuffle(len(in.Config.Zones), func(i, j int) {
			in.Config.Zones[i], in.Config.Zones[j] = in.Config.Zones[j], in.Config.Zones[i]
		})
		if got := Compile(in); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: got %+v, want %+v", seed, got, want)
		}
	}
}

// FuzzDenyByDefault lets pass nothing that no policy or pinhole mentions, whatever
// the file says: what comes from a new connection's client by an interface of no
// zone, and what goes where no policy leads.
func FuzzDenyByDefault(f *testing.F) {
	f.Add(site, "eth1", "eth0", "10.11.12.7", "10.0.0.10", uint16(6443), uint8(0))
	f.Add(site, "wg0", "", "10.11.12.7", "10.0.0.10", uint16(22), uint8(1))
	f.Add(site, "veth0", "", "2001:db8::1", "fd12::1", uint16(123), uint8(3))
	f.Add("apiVersion: gatehouse.e13.dev/v1\nzones: {a: {interfaces: [b]}}\nfirewall: {}\n", "b", "", "fe80::1", "ff02::1", uint16(135), uint8(4))
	f.Fuzz(func(t *testing.T, text, in, out, src, dst string, port uint16, kind uint8) {
		c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(text)}})
		if c == nil {
			if len(problems) == 0 {
				t.Fatal("refused without a problem")
			}
			return
		}
		from, err1 := netip.ParseAddr(src)
		to, err2 := netip.ParseAddr(dst)
		if err1 != nil || err2 != nil || from.Is4() != to.Is4() {
			return
		}
		opened := []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, in, "", 80, "service/shop/web")}
		r := Compile(Inputs{Config: c, Frontends: opened})
		p := Packet{In: in, Out: out, Src: from, Dst: to, Protocol: []edge.Protocol{edge.TCP, edge.UDP, edge.SCTP, config.ICMP, ""}[kind%5], HopLimit: 64}
		if p.Protocol == config.ICMP {
			p.ICMPType = uint8(port)
		} else {
			p.SrcPort, p.DstPort = 40000, port
		}
		v := r.Verdict(p)
		if !v.Accept {
			if v.Masquerade {
				t.Errorf("%+v: %+v", p, v)
			}
			return
		}
		rule := r.Rules[v.Rule]
		switch zone := r.ZoneOf(in); {
		case in == Loopback && out == "":
		case rule.Policy >= 0:
			policy := c.Firewall.Policies[rule.Policy]
			named := policy.From == "" && zone != "" || policy.From == zone && zone != ""
			switch {
			case out == "":
				named = named && policy.To == config.Self
			case policy.To == "":
				named = named && r.ZoneOf(out) != ""
			default:
				named = named && policy.To == r.ZoneOf(out)
			}
			if !named || !policy.Allow {
				t.Errorf("%+v: %s, by policy %s", p, v.Why, policy)
			}
		case rule.Fits.Pinholes == Door && out == "":
			if len(c.Admin.Zones)+len(c.DHCP) == 0 && c.Admin.Listen == "" && c.DNS == nil && v.Why != "service/shop/web" {
				t.Errorf("%+v: %s", p, v.Why)
			}
		default:
			t.Errorf("%+v: %s", p, v.Why)
		}
	})
}
