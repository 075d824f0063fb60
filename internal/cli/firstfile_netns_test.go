package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"e13.dev/gatehouse/internal/netnstest"
)

// initHere runs gatehouse init, and check of what it wrote.
func initHere(t *testing.T, args ...string) (file, said string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "gatehouse.yaml")
	var stdout, stderr bytes.Buffer
	if code := Main(append([]string{"init", "-o", file}, args...), &stdout, &stderr); code != exitOK {
		t.Fatalf("init: %d\n%s", code, stderr.String())
	}
	var problems bytes.Buffer
	if code := Main([]string{"check", "-c", file}, &stdout, &problems); code != exitOK {
		t.Errorf("check: %d\n%s", code, problems.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), stderr.String()
}

// On a machine with every kind of interface that people have.
func TestNetnsInit(t *testing.T) {
	netnstest.Run(t, func() {
		if text, said := initHere(t); strings.Contains(text, "\nzones:") || !strings.Contains(said, "no zone: no interface leads anywhere") {
			t.Errorf("of a machine without interfaces:\n%s%s", said, text)
		}
		other := netnstest.New(t)
		for _, name := range []string{"eth0", "eth1", "eth2", "eth3"} {
			netnstest.Cable(t, nil, name, other, name)
		}
		add := func(l netlink.Link) {
			if err := netlink.LinkAdd(l); err != nil {
				t.Fatalf("%s: %v", l.Attrs().Name, err)
			}
			netnstest.LinkUp(t, nil, l.Attrs().Name)
		}
		index := func(name string) int {
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			return l.Attrs().Index
		}
		attrs := func(name, parent string) netlink.LinkAttrs {
			a := netlink.NewLinkAttrs()
			a.Name = name
			if parent != "" {
				a.ParentIndex = index(parent)
			}
			return a
		}
		add(&netlink.Macvlan{LinkAttrs: attrs("public0", "eth1"), Mode: netlink.MACVLAN_MODE_BRIDGE})
		vlan := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs("eth1.20", "eth1"), VlanId: 20})
		switch {
		case errors.Is(vlan, syscall.EOPNOTSUPP): // some kernels have none
			t.Log("no VLANs in this kernel")
		case vlan != nil:
			t.Fatal(vlan)
		default:
			netnstest.LinkUp(t, nil, "eth1.20")
			netnstest.Addr(t, nil, "eth1.20", "10.20.0.1/24")
		}
		add(&netlink.Bridge{LinkAttrs: attrs("docker0", "")})
		add(&netlink.Bridge{LinkAttrs: attrs("br0", "")})
		eth2, err := netlink.LinkByName("eth2")
		if err == nil {
			err = netlink.LinkSetMasterByIndex(eth2, index("br0"))
		}
		if err != nil {
			t.Fatal(err)
		}
		for name, addr := range map[string]string{
			"eth0": "10.0.0.1/24", "eth1": "10.11.12.32/24", "public0": "10.11.12.51/24",
			"docker0": "172.17.0.1/16", "br0": "10.30.0.1/24",
		} {
			netnstest.Addr(t, nil, name, addr)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index("eth1"), Gw: []byte{10, 11, 12, 1}}); err != nil {
			t.Fatal(err)
		}
		// The kernel sets IFF_RUNNING a second after the carrier, or later.
		netnstest.Eventually(t, 10*time.Second, "all have come up", func() bool {
			return !slices.ContainsFunc([]string{"eth0", "eth1", "eth2", "eth3", "public0", "br0"}, func(name string) bool {
				l, err := netlink.LinkByName(name)
				return err != nil || l.Attrs().OperState != netlink.OperUp
			})
		})

		text, said := initHere(t)
		for _, want := range []string{
			"\n  home: {interfaces: [eth1]}\n", "\n  internet: {interfaces: [public0]}\n",
			"\n  br0: {interfaces: [br0]}\n", "\n  eth0: {interfaces: [eth0]}\n", "# public0: 10.11.12.51/24, macvlan on eth1\n",
			"\n# docker0: made for containers of this machine\n", "\n# eth2: a part of br0\n", "\n# eth3: without an address\n", "\n# lo: the loopback\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("it has no %q:\n%s", want, text)
			}
		}
		if got := strings.Contains(text, "\n  # eth1.20: 10.20.0.1/24, vlan on eth1\n  eth1-20: {interfaces: [eth1.20]}\n"); got != (vlan == nil) {
			t.Errorf("the VLAN: %t, made: %v\n%s", got, vlan, text)
		}
		if !strings.Contains(said, "\nNext:\n") || !strings.Contains(said, "zone internet: a macvlan on eth1, a door of its own: have the router forward public ports to 10.11.12.51\n") {
			t.Errorf("it says:\n%s", said)
		}

		// A kubeconfig says where the cluster is, though nobody answers there.
		kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
		config := `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "https://10.0.0.1:1"}}], users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}`
		config = strings.Replace(config, "10.0.0.1:1", "10.0.0.10:6443", 1)
		if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		text, said = initHere(t, "--kubeconfig", kubeconfig)
		if !strings.Contains(text, "\n  # it leads to the API server 10.0.0.10\n") || !strings.Contains(text, "\n  cluster: {interfaces: [eth0]}\n") || !strings.Contains(text, "\n  kubeconfig: "+kubeconfig+"\n") {
			t.Errorf("the cluster is not found:\n%s", text)
		}
		if !strings.Contains(said, "the nodes are not known: kube: the API server https://10.0.0.10:6443 cannot be reached: no answer") {
			t.Errorf("it says:\n%s", said)
		}
	})
}

func TestInitWritesOverNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-o", file}, exitNo, "is there already; give another file with -o, or write over it with --force"},
		{[]string{"--zone", "home"}, exitUsage, "--zone home: write NAME=INTERFACE, such as home=eth1"},
		{[]string{"--zone", "home=eth0,"}, exitUsage, "--zone home=eth0,: write NAME=INTERFACE"},
		{[]string{"--zone", "home=nosuch0"}, exitUsage, `--zone: zone home: this machine has no interface "nosuch0"; it has `},
		{[]string{"--kubeconfig", filepath.Join(t.TempDir(), "none")}, exitNo, "no such file"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(append([]string{"init"}, tt.args...), &stdout, &stderr)
		if code != tt.code || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
			t.Errorf("%q: %d, %s%s\nwant %d, %s", tt.args, code, stdout.String(), stderr.String(), tt.code, tt.want)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q %v", text, err)
	}
	var stdout, stderr bytes.Buffer
	if code := Main([]string{"init", "--force", "-o", file}, &stdout, &stderr); code != exitOK {
		t.Fatalf("%d %s", code, stderr.String())
	}
	text, err := os.ReadFile(file)
	info, serr := os.Stat(file)
	if err != nil || serr != nil || info.Mode() != 0o644 || !strings.HasPrefix(string(text), "# A first configuration") {
		t.Errorf("%v %v %v\n%s", err, serr, info, text)
	}
}
