package firstfile

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

var update = flag.Bool("update", false, "write the golden files anew")

func link(name, kind string, addrs ...string) edge.Link {
	l := edge.Link{Name: name, Kind: kind, Up: true}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
	}
	return l
}

func with(l edge.Link, edit func(*edge.Link)) edge.Link {
	edit(&l)
	return l
}

func out(metric int) func(*edge.Link) {
	return func(l *edge.Link) { l.Default, l.Metric = true, metric }
}

func on(parent string) func(*edge.Link) { return func(l *edge.Link) { l.Parent = parent } }

func lo() edge.Link {
	return with(link("lo", "device", "127.0.0.1/8", "::1/128"), func(l *edge.Link) { l.Loopback = true })
}

// The box of the picture in the README.
func edgeBox() []edge.Link {
	return []edge.Link{
		link("eth0", "device", "10.0.0.1/24", "fd00:10::1/64"),
		with(link("eth1", "device", "10.11.12.32/24", "fd00:11:12::32/64"), out(200)),
		lo(),
		with(with(link("veth0", "macvlan", "10.11.12.51/24"), on("eth1")), out(100)),
	}
}

func zonesOf(f File) string {
	var zones []string
	for _, z := range f.Zones {
		var names []string
		for _, l := range z.Links {
			names = append(names, l.Name)
		}
		zones = append(zones, z.Name+"="+strings.Join(names, ","))
	}
	return strings.Join(zones, " ")
}

func TestPropose(t *testing.T) {
	toCluster := []Towards{{"the API server 10.0.0.10", "eth0"}}
	docker := link("docker0", "bridge", "172.17.0.1/16")
	for _, tt := range []struct {
		name  string
		facts Facts
		zones string
		left  string
	}{
		{"the box of the picture", Facts{Links: edgeBox(), Towards: toCluster}, "home=eth1 internet=veth0 cluster=eth0", "lo"},
		{"where the cluster is nobody knows", Facts{Links: edgeBox()}, "home=eth1 internet=veth0 eth0=eth0", "lo"},
		{"but the operator", Facts{Links: edgeBox(), Zones: []edge.Zone{{Name: "cluster", Interfaces: []string{"eth0"}}}}, "home=eth1 internet=veth0 cluster=eth0", "lo"},
		{
			"the operator says all",
			Facts{Links: edgeBox(), Towards: toCluster, Zones: []edge.Zone{{Name: "lan", Interfaces: []string{"eth1", "eth0"}}, {Name: "internet", Interfaces: []string{"veth0"}}}},
			"internet=veth0 lan=eth1,eth0", "lo",
		},
		{"a MACVLAN beside an internet that the operator has named", Facts{Links: edgeBox(), Zones: []edge.Zone{{Name: "internet", Interfaces: []string{"eth0"}}}}, "home=eth1,veth0 internet=eth0", "lo"},
		{"one leg", Facts{Links: []edge.Link{with(link("eth0", "device", "192.168.1.5/24", "2001:db8::5/64"), out(100)), lo()}, Towards: toCluster}, "home=eth0", "lo"},
		{"a cable and a radio into one network", Facts{Links: []edge.Link{
			with(link("eth0", "device", "192.168.1.5/24"), out(100)), with(with(link("wlan0", "device", "192.168.1.6/24"), out(600)), func(l *edge.Link) { l.Wireless = true }),
		}}, "home=eth0,wlan0", ""},
		{"a radio of its own, and a way out for emergencies", Facts{Links: []edge.Link{
			with(link("eth0", "device", "192.168.1.5/24"), out(100)), with(link("wlan0", "device", "10.9.9.1/24"), func(l *edge.Link) { l.Wireless = true }),
			with(link("wwan0", "device", "10.33.1.2/30"), out(700)),
		}}, "home=eth0 wwan0=wwan0 wifi=wlan0", ""},
		{"a server with a public address, and a network behind it", Facts{Links: []edge.Link{
			with(link("eth0", "device", "9.9.9.9/24"), out(0)), link("eth1", "device", "10.0.0.1/24"), link("wg0", "wireguard", "10.8.0.1/24"),
		}}, "home=eth1 internet=eth0 vpn=wg0", ""},
		{"that, and the network is the cluster's", Facts{Links: []edge.Link{
			with(link("eth1", "device", "9.9.9.9/24"), out(0)), link("eth0", "device", "10.0.0.1/24"),
		}, Towards: toCluster}, "internet=eth1 cluster=eth0", ""},
		{"public by IPv6 alone", Facts{Links: []edge.Link{with(link("eth0", "device", "2606:4700::1/64"), out(0))}}, "internet=eth0", ""},
		{"behind a provider's NAT", Facts{Links: []edge.Link{with(link("eth0", "device", "100.64.3.4/10"), out(0))}}, "home=eth0", ""},
		{"VLANs", Facts{Links: []edge.Link{
			link("eth0", "device"), with(link("eth0.10", "vlan", "10.1.0.2/24"), func(l *edge.Link) { l.Parent = "eth0"; l.Default = true }), with(link("eth0.20", "vlan", "10.2.0.2/24"), on("eth0")),
		}}, "home=eth0.10 eth0-20=eth0.20", "eth0"},
		{"a VLAN beside what is not tagged", Facts{Links: []edge.Link{
			with(link("eth0", "device", "10.1.0.2/24"), out(0)), with(link("eth0.20", "vlan", "10.2.0.2/24"), on("eth0")),
		}}, "home=eth0 eth0-20=eth0.20", ""},
		{"a bridge of the operator's", Facts{Links: []edge.Link{
			with(link("br0", "bridge", "192.168.1.5/24"), out(0)), with(link("eth0", "device", "192.168.1.6/24"), func(l *edge.Link) { l.Master = "br0" }),
		}}, "home=br0", "eth0"},
		{"containers", Facts{Links: []edge.Link{
			docker, link("br-0123456789ab", "bridge", "172.18.0.1/16"), link("cni0", "bridge", "10.42.0.1/24"), link("flannel.1", "vxlan", "10.42.0.0/32"),
			link("veth0a1b2c3d", "veth", "169.254.1.1/32"), link("kube-ipvs0", "dummy", "10.96.0.1/32"), link("cali0123456789a", "veth"), link("virbr0", "bridge", "192.168.122.1/24"),
			link("tunl0", "ipip", "10.244.1.0/32"), link("dummy0", "dummy", "10.1.1.1/32"), link("vx", "vxlan", "10.1.1.1/24"),
			with(link("eth0", "device", "192.168.1.5/24"), out(0)),
		}}, "home=eth0", "docker0 br-0123456789ab cni0 flannel.1 veth0a1b2c3d kube-ipvs0 cali0123456789a virbr0 tunl0 dummy0 vx"},
		{"down, but it has an address", Facts{Links: []edge.Link{with(with(link("eth0", "device", "192.168.1.5/24"), out(0)), func(l *edge.Link) { l.Up = false }), with(link("eth1", "device"), func(l *edge.Link) { l.Up = false })}}, "home=eth0", "eth1"},
		{"nothing", Facts{Links: []edge.Link{lo()}}, "", "lo"},
		{"names alike", Facts{Links: []edge.Link{
			with(link("eth0", "device", "192.168.1.5/24"), out(0)), link("A_1", "device", "10.1.0.1/24"), link("a-1", "device", "10.2.0.1/24"), link("--", "device", "10.3.0.1/24"),
		}}, "home=eth0 a-1=A_1 a-1-2=a-1 net=--", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Propose(tt.facts)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, l := range f.LeftOut {
				left = append(left, l.Name)
				if l.Why == "" {
					t.Errorf("%s is left out without a word", l.Name)
				}
			}
			if got := zonesOf(f); got != tt.zones || strings.Join(left, " ") != tt.left {
				t.Errorf("got  %s (left out: %s)\nwant %s (left out: %s)", got, strings.Join(left, " "), tt.zones, tt.left)
			}
			good(t, f)
		})
	}
}

func TestProposeRefusesZonesThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		zones []edge.Zone
		want  string
	}{
		{[]edge.Zone{{Name: "home", Interfaces: []string{"eth9"}}}, `zone home: this machine has no interface "eth9"; it has eth0, eth1, veth0`},
		{[]edge.Zone{{Name: "home", Interfaces: []string{"eth0"}}, {Name: "lan", Interfaces: []string{"eth0"}}}, "interface eth0 is in two zones; it can be in one"},
		{[]edge.Zone{{Name: "home", Interfaces: []string{"eth0"}}, {Name: "home", Interfaces: []string{"eth1"}}}, "zone home is there twice; write its interfaces in one"},
		{[]edge.Zone{{Name: "Home!", Interfaces: []string{"eth0"}}}, `"Home!" is not a name of a zone: write 1 to 63 small letters, digits and -`},
	} {
		if _, err := Propose(Facts{Links: edgeBox(), Zones: tt.zones}); err == nil || err.Error() != tt.want {
			t.Errorf("%v: %v\nwant %s", tt.zones, err, tt.want)
		}
	}
}

func TestYAML(t *testing.T) {
	f, err := Propose(Facts{Links: append(edgeBox(), link("docker0", "bridge", "172.17.0.1/16")), Towards: []Towards{{"the API server 10.0.0.10", "eth0"}, {"3 nodes", "eth0"}}})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "edge.yaml")
	got := f.YAML()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != string(got) {
		t.Errorf("not %s (%v); go test -update writes it\n%s", golden, err, got)
	}
	if !strings.Contains(string(got), "\n  allow:\n    internet:\n      namespaces: [ingress-public]\n") {
		t.Errorf("everybody may open Services on the Internet:\n%s", got)
	}
	if text := string(switchedOn(got)); !strings.Contains(text, "\npools:\n  - name: home\n") || !strings.Contains(text, "addresses: [10.11.12.240-10.11.12.247]") ||
		!strings.Contains(text, "\n  allow:\n    internet:\n") || !strings.Contains(text, "\nfrontends:\n") {
		t.Errorf("examples are missing:\n%s", text)
	}
}

// Addresses are proposed for a pool where there are some to spare, and none that
// this machine has itself.
func TestPool(t *testing.T) {
	for _, tt := range []struct{ addr, want string }{
		{"192.168.1.5/24", "192.168.1.240-192.168.1.247"},
		{"192.168.1.245/24", "192.168.1.232-192.168.1.239"},
		{"10.3.0.1/16", "10.3.255.240-10.3.255.247"},
		{"10.0.0.1/27", "10.0.0.16-10.0.0.23"},
		{"10.0.0.1/28", ""},
		{"9.9.9.9/24", ""},
		{"fd00::1/64", ""},
	} {
		f, err := Propose(Facts{Links: []edge.Link{with(link("eth0", "device", tt.addr), out(0))}})
		if err != nil {
			t.Fatal(err)
		}
		got, _, _ := f.pool()
		if has := strings.Contains(string(f.YAML()), "\n#pools:\n"); got != tt.want || has != (tt.want != "") {
			t.Errorf("%s: %q (in the file: %t), want %q", tt.addr, got, has, tt.want)
		}
	}
}

// switchedOn has the examples of a file on, as it says how.
func switchedOn(file []byte) []byte {
	var lines []string
	for line := range strings.SplitSeq(string(file), "\n") {
		rest, is := strings.CutPrefix(line, "#")
		if is && rest != "" && (!strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "  ")) {
			line = rest
		}
		lines = append(lines, line)
	}
	return []byte(strings.Join(lines, "\n"))
}

// good fails unless check accepts the file, with its examples on and off, and it
// has the zones that were proposed.
func good(t *testing.T, f File) {
	t.Helper()
	text := f.YAML()
	for _, text := range [][]byte{text, switchedOn(text)} {
		c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: text}})
		if len(problems) > 0 {
			t.Fatalf("%v\n%s", problems, text)
		}
		if len(f.Zones) > 0 && len(c.Zones) != len(f.Zones) || c.Kubernetes == nil || c.Kubernetes.Kubeconfig != f.Kubeconfig || c.StateDir == "" || c.Admin.Socket == "" {
			t.Fatalf("not what was proposed: %+v\n%s", c, text)
		}
		got := map[string]string{}
		for _, z := range c.Zones {
			got[z.Name] = strings.Join(z.Interfaces, " ")
		}
		for _, z := range f.Zones {
			var names []string
			for _, l := range z.Links {
				names = append(names, l.Name)
			}
			if got[z.Name] != strings.Join(names, " ") {
				t.Fatalf("zone %s has %q, proposed was %q\n%s", z.Name, got[z.Name], names, text)
			}
		}
	}
	if on := string(switchedOn(text)); !strings.Contains(on, "\nfrontends:") || on == string(text) {
		t.Fatalf("no examples:\n%s", on)
	}
}

// Whatever interfaces a machine has, check accepts what is written.
func FuzzPropose(f *testing.F) {
	f.Add(uint64(107), " ", "0")
	f.Add(uint64(1), "eth0", "/etc/gatehouse/kubeconfig")
	f.Add(uint64(2), "null", "/tmp/a b: #c\n\"d\"")
	f.Add(uint64(3), "\xff{}[],&*#?|-<>=!%@`", "true")
	f.Add(uint64(4), `a"b\c`, "relative/file")
	f.Fuzz(func(t *testing.T, seed uint64, name, kubeconfig string) {
		if kubeconfig == "" || strings.ContainsRune(kubeconfig, 0) || strings.ToValidUTF8(kubeconfig, "") != kubeconfig {
			t.Skip("the command refuses it")
		}
		facts := randomFacts(rand.New(rand.NewPCG(seed, 0)), name)
		facts.Kubeconfig = kubeconfig
		file, err := Propose(facts)
		if err != nil {
			t.Fatal(err)
		}
		good(t, file)
		// Each interface is somewhere, once.
		seen := map[string]int{}
		for _, z := range file.Zones {
			for _, l := range z.Links {
				seen[l.Name]++
			}
		}
		for _, l := range file.LeftOut {
			seen[l.Name]++
		}
		for _, l := range facts.Links {
			if seen[l.Name] != 1 {
				t.Errorf("%q is in %d places", l.Name, seen[l.Name])
			}
		}
	})
}

func TestProposeIsAlwaysGood(t *testing.T) {
	for seed := range uint64(3000) {
		file, err := Propose(randomFacts(rand.New(rand.NewPCG(seed, 1)), "eth0"))
		if err != nil {
			t.Fatal(err)
		}
		good(t, file)
	}
}

func randomFacts(r *rand.Rand, name string) Facts {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	var facts Facts
	seen := map[string]bool{}
	for i := range r.IntN(8) {
		l := edge.Link{
			Name: pick("eth", "wlan", "veth", "br", "wg", "y", "null", "1e", "-", "docker", "0x", "a.b", "{", "é") + fmt.Sprint(i),
			Kind: pick("device", "veth", "bridge", "macvlan", "vlan", "ipvlan", "wireguard", "dummy", "vxlan", "tuntap", "bond", "", "new\nkind"),
			Up:   r.IntN(4) > 0, Loopback: r.IntN(9) == 0, Wireless: r.IntN(5) == 0, Default: r.IntN(3) == 0, Metric: r.IntN(3),
			Master: pick("", "", "", "br0"), Parent: pick("", "", "eth0", "wlan1", "br2"),
		}
		if i == 0 {
			l.Name = name
		}
		for range r.IntN(3) {
			l.Addrs = append(l.Addrs, netip.MustParsePrefix(pick("10.0.0.1/24", "10.0.0.2/24", "192.168.1.255/16", "10.0.0.9/8", "10.0.0.17/27", "10.0.0.1/32", "9.9.9.9/24", "100.64.0.1/10",
				"fd00::1/64", "2606::1/64", "0.0.0.1/0", "172.16.0.1/31", "255.255.255.255/24", "10.255.255.250/8")))
		}
		if seen[l.Name] {
			continue
		}
		seen[l.Name] = true
		facts.Links = append(facts.Links, l)
		if r.IntN(3) == 0 {
			facts.Towards = append(facts.Towards, Towards{pick("the API server 10.0.0.10", "the node 10.0.0.11", "the API server \xff\n: #"), l.Name})
		}
		if r.IntN(6) == 0 && plain(l.Name) {
			facts.Zones = append(facts.Zones, edge.Zone{Name: pick("home", "internet", "cluster", "z", "null", "0", "1e3") + pick("", "-"+fmt.Sprint(i)+"x"), Interfaces: []string{l.Name}})
		}
	}
	zones := facts.Zones
	facts.Zones = nil
	named := map[string]bool{}
	for _, z := range zones {
		if !named[z.Name] {
			facts.Zones = append(facts.Zones, z)
		}
		named[z.Name] = true
	}
	return facts
}
