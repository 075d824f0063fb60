package daemon

import (
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

func realKernel(t *testing.T) *kernel {
	return newKernel(slog.New(slog.NewTextHandler(t.Output(), nil)), func(edge.Protocol, netip.AddrPort) {})
}

func stateOf(frontends ...edge.Frontend) desired.State {
	return desired.State{NAT: true, Frontends: frontends}
}

// stubbornNFT is an nft command that does nothing as long as fail is there.
func stubbornNFT(t *testing.T) (fail string) {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fail = filepath.Join(dir, "fail")
	script := "#!/bin/sh\n[ ! -e " + fail + " ] || { echo no memory >&2; exit 1; }\nexec " + nft + ` "$@"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return fail
}

// A door that the kernel does not take stays the relay's, if it was, and else is
// not told to be open.
func TestNetnsDoorsThatTheKernelRefuses(t *testing.T) {
	netnstest.Run(t, func() {
		fail := stubbornNFT(t)
		d := &Daemon{kernel: realKernel(t)}
		at := func(port uint16) edge.Door {
			return edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: port}}
		}
		relayed := edge.Frontend{Door: at(80), Name: "web", Why: "before"}
		decide := func(frontends ...edge.Frontend) (toRelay []edge.Frontend, closed map[edge.Door]string) {
			if failure := d.kernel.open(t.Context(), stateOf(frontends...), nil); failure != "" {
				t.Fatal(failure)
			}
			toRelay = d.toRelay(stateOf(frontends...), false)
			d.kernel.close(t.Context())
			closed, _ = d.kernel.state()
			return toRelay, closed
		}
		if _, closed := decide(relayed, translated(at(443), up(pod1))); len(closed) != 0 {
			t.Fatalf("not open: %v", closed)
		}
		if err := os.WriteFile(fail, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		all := []edge.Frontend{translated(at(80), up(pod1)), translated(at(81), up(pod1)), translated(at(443), up(pod1))}
		for range 3 {
			toRelay, closed := decide(all...)
			if len(toRelay) != 1 || toRelay[0].Why != "before" {
				t.Fatalf("the relay has %v, want the door that the kernel has not taken", toRelay)
			}
			if len(closed) != 1 || !strings.Contains(closed[at(81)], "no memory") {
				t.Fatalf("not open: %v", closed)
			}
			time.Sleep(lingerTime * 3 / 5)
		}
		if err := os.Remove(fail); err != nil {
			t.Fatal(err)
		}
		if _, closed := decide(all...); len(closed) != 0 {
			t.Errorf("not open: %v", closed)
		}
		d.lingering[at(80)] = lingerer{d.lingering[at(80)].frontends, time.Now()}
		if toRelay, _ := decide(all...); len(toRelay) != 0 {
			t.Errorf("the relay still has %v", toRelay)
		}
	})
}

// A Service is not let go while the kernel has its door: as long as that goes on
// as before, and when it does not take what it is told.
func TestNetnsServicesGoOnceTheyAreClosed(t *testing.T) {
	netnstest.Run(t, func() {
		fail := stubbornNFT(t)
		services := []edge.Service{
			{Namespace: "shop", Name: "web", UID: "u-web", Finalizer: true},
			{Namespace: "shop", Name: "news", UID: "u-news"},
			{Namespace: "shop", Name: "relayed", UID: "u-relayed", Finalizer: true},
		}
		statuses := []edge.ServiceStatus{{UID: "u-web"}, {UID: "u-news"}, {UID: "u-relayed"}}
		told := func(k *kernel, want string) {
			t.Helper()
			var uids []string
			for _, s := range k.closed(statuses, services) {
				uids = append(uids, s.UID)
			}
			if got := strings.Join(uids, " "); got != want {
				t.Errorf("told are %q, want %q", got, want)
			}
		}
		web := translated(homeDoor, up(pod1))
		web.Name, web.Why = "shop/web:80", "service/shop/web"
		k := realKernel(t)
		k.open(t.Context(), stateOf(web), nil)
		k.close(t.Context())
		told(k, "u-news u-relayed")
		if err := os.WriteFile(fail, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		k.open(t.Context(), stateOf(), nil)
		k.close(t.Context())
		told(k, "u-news u-relayed")
		if err := os.Remove(fail); err != nil {
			t.Fatal(err)
		}
		k = realKernel(t)
		waits := translated(edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 81}}, edge.Backend{Addr: pod2, Weight: 1, State: edge.Pending})
		if !k.hold(t.Context(), true, nil, stateOf(waits)) {
			t.Fatal("it does not wait for probes")
		}
		told(k, "u-news")
		k.known = k.known.Add(-kernelHold)
		if k.hold(t.Context(), true, nil, stateOf(waits)) {
			t.Fatal("it waits forever")
		}
		k.open(t.Context(), stateOf(waits), nil)
		k.close(t.Context())
		told(k, "u-web u-news u-relayed")
	})
}

// A process after this one knows which backends had connections, and does not
// refuse clients at a door that the relay has since.
func TestNetnsAdoptedDoors(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 8080)
		before, former := realKernel(t), netip.MustParseAddrPort("10.244.1.5:8080")
		before.open(t.Context(), stateOf(translated(homeDoor, up(former))), nil)
		alive, hangUp := talk(t, site, "10.11.12.32:80")
		defer hangUp()
		alive()
		before.open(t.Context(), stateOf(translated(homeDoor, up(pod1))), nil)

		after := realKernel(t)
		if after.hold(t.Context(), true, nil, desired.State{}) {
			t.Error("it waits for what it knows")
		}
		if b := after.behind[serviceOf(homeDoor)]; !b.has(pod1) || !b.has(former) {
			t.Errorf("behind the door are %v", b)
		}
		// The relay is to have it now. Until that has, the kernel goes on.
		after.open(t.Context(), desired.State{Frontends: []edge.Frontend{{Door: homeDoor, Name: "web"}}}, nil)
		doors := func() string { return sh(t, "nft list map inet gatehouse doors4") }
		if text := doors(); !strings.Contains(text, "eth1") {
			t.Errorf("nobody has the door:\n%s", text)
		}
		after.close(t.Context())
		if text := doors(); strings.Contains(text, "eth1") {
			t.Errorf("the kernel has a door that is the relay's:\n%s", text)
		}
	})
}

// A gatehouse beside another, which has nothing for the kernel, leaves the
// other's doors there.
func TestNetnsTwoGatehouses(t *testing.T) {
	netnstest.Run(t, func() {
		first, second := realKernel(t), realKernel(t)
		first.open(t.Context(), stateOf(translated(homeDoor, up(pod1))), nil)
		second.running = func() ([]int, error) { return []int{os.Getpid(), 1}, nil }
		leave := func() {
			second.hold(t.Context(), true, nil, desired.State{})
			second.open(t.Context(), desired.State{}, nil)
			second.close(t.Context())
			if err := second.purgeLocked(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		has := func() bool { return strings.Contains(sh(t, "nft list ruleset"), "eth1") }
		if leave(); !has() {
			t.Error("the other's door is gone")
		}
		// But what it has opened itself is closed.
		third := realKernel(t)
		third.running = second.running
		own := translated(edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth2", Port: 81}}, up(pod1))
		own.Name = "web"
		third.open(t.Context(), stateOf(own), nil)
		third.open(t.Context(), desired.State{}, nil)
		third.close(t.Context())
		if text := sh(t, "nft list ruleset"); strings.Contains(text, "eth2") {
			t.Errorf("its own door is open:\n%s", text)
		}
		first.open(t.Context(), stateOf(translated(homeDoor, up(pod2))), nil)
		second.running = func() ([]int, error) { return []int{os.Getpid()}, nil }
		if leave(); has() {
			t.Error("a door stays that nobody has")
		}
	})
}

// While the cluster cannot be read, only what may be a Service's stays as it was.
func TestNetnsTheClusterIsNotRead(t *testing.T) {
	netnstest.Run(t, func() {
		at := func(device string, port uint16) edge.Door {
			return edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: device, Port: port}}
		}
		named := func(device string, port uint16, to netip.AddrPort) edge.Frontend {
			f := translated(at(device, port), up(to))
			f.Name = "web"
			return f
		}
		before := realKernel(t)
		before.open(t.Context(), stateOf(named("eth1", 80, pod1), named("eth1", 81, pod1), named("eth2", 82, pod1)), nil)
		zones := []edge.Zone{{Name: "home", Interfaces: []string{"eth1"}}}
		state := stateOf(named("eth1", 80, pod2), named("eth1", 83, pod2))

		k := realKernel(t)
		if !k.hold(t.Context(), false, zones, state) {
			t.Fatal("it does not wait for the cluster")
		}
		k.since = k.since.Add(-kernelHold)
		for range 2 {
			if k.hold(t.Context(), false, zones, state) {
				t.Fatal("it waits for the cluster forever")
			}
			k.open(t.Context(), state, nil)
			k.close(t.Context())
		}
		has := func(when string, want map[edge.Door][]netip.AddrPort) {
			t.Helper()
			if _, got, err := realKernel(t).nat.Adopt(t.Context()); err != nil || !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%s, the kernel has %v (%v), want %v", when, got, err, want)
			}
		}
		has("unread", map[edge.Door][]netip.AddrPort{
			at("eth1", 80): {pod2}, at("eth1", 81): {pod1}, at("eth1", 83): {pod2},
		})
		if _, err := k.nat.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		if k.hold(t.Context(), true, zones, state) {
			t.Fatal("it waits, and has all it needs")
		}
		k.open(t.Context(), state, nil)
		k.close(t.Context())
		has("read", map[edge.Door][]netip.AddrPort{at("eth1", 80): {pod2}, at("eth1", 83): {pod2}})
	})
}

// What the relay has at another interface is no reason to forget that a door is
// closed.
func TestNetnsADoorIsClosedBesideOneOfTheRelay(t *testing.T) {
	netnstest.Run(t, func() {
		k, other := realKernel(t), homeDoor
		other.Listen.Device = "eth0"
		relayed := edge.Frontend{Door: other, Name: "web"}
		k.open(t.Context(), stateOf(relayed, translated(homeDoor, up(pod1))), nil)
		k.close(t.Context())
		k.open(t.Context(), desired.State{Frontends: []edge.Frontend{relayed}}, nil)
		if b := k.behind[serviceOf(homeDoor)]; b.closed.IsZero() || !b.has(pod1) {
			t.Errorf("behind the closed door are %v", b)
		}
	})
}

// What a process of another version has left goes, once nobody can need it.
func TestNetnsAnotherVersionsTable(t *testing.T) {
	netnstest.Run(t, func() {
		sh(t, "nft 'table inet gatehouse { chain old { type nat hook prerouting priority dstnat; tcp dport 80 dnat ip to 10.244.1.5:8080; }; }'")
		tables := func() string { return sh(t, "nft list tables") }
		k := realKernel(t)
		decide := func(read bool) {
			if !k.hold(t.Context(), read, nil, desired.State{}) {
				k.open(t.Context(), desired.State{}, nil)
				k.close(t.Context())
			}
		}
		if decide(false); tables() == "" {
			t.Error("it is removed before the cluster is read")
		}
		if decide(true); tables() != "" {
			t.Errorf("left are %s", tables())
		}
	})
}
