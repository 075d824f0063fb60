package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/status"
)

// fakeKeeper makes an address ready when it is told to, and remembers what it
// was asked for.
type fakeKeeper struct {
	changed chan struct{}

	mu       sync.Mutex
	calls    []string
	states   map[netip.Addr]edge.AddressState
	wanted   []edge.Address
	doors    []edge.Door
	err      error
	running  int
	problems []edge.Problem
}

func newFakeKeeper() *fakeKeeper {
	return &fakeKeeper{changed: make(chan struct{}, 1), states: map[netip.Addr]edge.AddressState{}}
}

func (k *fakeKeeper) called(name string) {
	k.calls = append(k.calls, name)
}

func (k *fakeKeeper) Adopt(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.called("adopt")
	return nil
}

func (k *fakeKeeper) Apply(_ context.Context, addresses []edge.Address, doors []edge.Door) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.called("apply")
	if k.err != nil {
		return k.err
	}
	k.wanted, k.doors = slices.Clone(addresses), slices.Clone(doors)
	return nil
}

func (k *fakeKeeper) Snapshot() map[netip.Addr]edge.AddressState {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.called("snapshot")
	return maps.Clone(k.states)
}

func (k *fakeKeeper) Changed() <-chan struct{} { return k.changed }

func (k *fakeKeeper) Problems() []edge.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.called("problems")
	return k.problems
}

func (k *fakeKeeper) Run(ctx context.Context) error {
	k.mu.Lock()
	k.called("run")
	k.running++
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running--
	return ctx.Err()
}

// set changes it, and tells.
func (k *fakeKeeper) set(change func()) {
	k.mu.Lock()
	change()
	k.mu.Unlock()
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

func (k *fakeKeeper) get(read func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	read()
}

// startWith runs a daemon with a keeper of the test's.
func startWith(t *testing.T, file string, k *fakeKeeper) (d *Daemon, stop func()) {
	t.Helper()
	d = New(Options{Files: []string{file}, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	d.addresses.keeper = k
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return d, stop
}

// poolSite is a cluster whose Services have addresses of a pool in eth1's network.
type poolSite struct {
	client         *netnstest.NS
	api            *apiServer
	file, stateDir string
	port, nodePort int
}

func newPoolSite(t *testing.T, names ...string) *poolSite {
	t.Helper()
	client := netnstest.New(t)
	netnstest.Cable(t, nil, "eth1", client, "eth0")
	netnstest.Addr(t, nil, "eth1", "10.11.12.1/24")
	netnstest.Addr(t, client, "eth0", "10.11.12.9/24")
	// As the keeper would, once they are wanted.
	for i := range 3 {
		netnstest.Addr(t, nil, "eth1", fmt.Sprintf("10.11.12.7%d/32", i))
	}
	p := &poolSite{client: client, api: newAPIServer(t), stateDir: filepath.Join(t.TempDir(), "state"), file: filepath.Join(t.TempDir(), "gatehouse.yaml")}
	_, p.nodePort = portOf(t, echo(t, "one"))
	_, p.port = portOf(t, freeAddr(t))
	p.api.set("nodes", nodeAt("127.0.0.1"))
	p.has(names...)
	p.api.serve(t)
	write(t, p.file, fmt.Sprintf(`apiVersion: gatehouse.e13.dev/v1
stateDir: %q
zones: {home: {interfaces: [eth1]}}
pools: [{name: home-v4, zone: home, addresses: [10.11.12.70-10.11.12.72]}]
kubernetes: {kubeconfig: %q, health: {interval: 0s}, healthzPort: 0}
`, p.stateDir, p.api.kubeconfig(t)))
	return p
}

// has makes these all Services there are.
func (p *poolSite) has(names ...string) {
	var services, all []object
	for _, name := range names {
		service, slice := serviceAt(name, p.port, p.nodePort)
		services, all = append(services, service), append(all, slice)
	}
	p.api.set("endpointslices", all...)
	p.api.set("services", services...)
}

// served is whether a client has an answer there.
func (p *poolSite) served(t *testing.T) func() error {
	return func() (err error) {
		p.client.Do(t, func() { err = serves(p.at("10.11.12.70"), "one")() })
		return err
	}
}

func (p *poolSite) refused(t *testing.T) func() error {
	return func() error {
		if p.served(t)() == nil {
			return errors.New("it is open")
		}
		return nil
	}
}

func (p *poolSite) at(addr string) string { return net.JoinHostPort(addr, fmt.Sprint(p.port)) }

// row is the address as the status has it.
func row(d *Daemon, addr string) func(want string) func() error {
	return func(want string) func() error {
		return func() error {
			for _, a := range d.Status().Addresses {
				if a.Addr.String() == addr {
					if got := fmt.Sprintf("%s %s %v", a.State, a.Device, a.Services); got != want {
						return fmt.Errorf("%s is %s, want %s", addr, got, want)
					}
					return nil
				}
			}
			if want == "" {
				return nil
			}
			return fmt.Errorf("%s is not there, want %s", addr, want)
		}
	}
}

// Doors at an address open when it is ready and a wall is around it; and the
// wall is opened for what is served, and for nothing else.
func TestNetnsDoorsWaitForTheirAddress(t *testing.T) {
	netnstest.Run(t, func() {
		p := newPoolSite(t, "web")
		k := newFakeKeeper()
		failure := errors.New("the nft command is not installed")
		k.err = failure
		vip := netip.MustParseAddr("10.11.12.70")
		k.states[vip] = edge.AddressState{Ready: true}
		d, _ := startWith(t, p.file, k)

		says := func(want string) func() error {
			return func() error {
				s := d.Status()
				for _, problem := range s.Problems {
					if strings.Contains(problem.String(), want) {
						return nil
					}
				}
				return fmt.Errorf("problems: %v", s.Problems)
			}
		}
		eventually(t, "the failure is said", says("nothing more is opened at addresses of pools: "+failure.Error()))
		if got := d.Status(); got.Ready || !slices.Contains(got.NotReady, "addresses of pools: "+failure.Error()) {
			t.Error("without a wall it waits for", got.NotReady)
		}
		if err := p.refused(t)(); err != nil {
			t.Error("without a wall:", err)
		}
		k.set(func() { k.err, k.states = nil, map[netip.Addr]edge.AddressState{} })
		eventually(t, "pending", row(d, "10.11.12.70")("pending eth1 [shop/web]"))
		eventually(t, "ready", func() error {
			if got := d.Status(); !got.Ready {
				return fmt.Errorf("with a wall it waits for %v", got.NotReady)
			}
			return nil
		})
		if err := p.refused(t)(); err != nil {
			t.Error("before it is ready:", err)
		}
		door := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Addr: vip, Port: uint16(p.port)}}
		eventually(t, "it is wanted, without a door", func() (err error) {
			k.get(func() {
				if len(k.doors) != 0 || !reflect.DeepEqual(k.wanted, []edge.Address{{Addr: vip, Device: "eth1", Why: "service/shop/web"}}) {
					err = fmt.Errorf("wanted are %v, with the doors %v", k.wanted, k.doors)
				}
			})
			return err
		})
		k.set(func() { k.states[vip] = edge.AddressState{Ready: true} })
		eventually(t, "served", p.served(t))
		eventually(t, "ready", row(d, "10.11.12.70")("ready eth1 [shop/web]"))
		k.get(func() {
			if !slices.Equal(k.doors, []edge.Door{door}) { // it was in the wall before anybody was served
				t.Errorf("the wall has the doors %v, want %v", k.doors, door)
			}
		})
		if pools := d.Status().Pools; !reflect.DeepEqual(pools, []status.Pool{{
			Name: "home-v4", Zone: "home", Addresses: 3, Given: 1, Free: 2,
			Families: []status.PoolFamily{{Family: "ipv4", Addresses: 3, Given: 1, Free: 2}},
		}}) {
			t.Errorf("pools: %+v", pools)
		}
		// What stands goes on when the wall cannot be changed.
		k.set(func() { k.err = failure })
		eventually(t, "the failure is said", says(failure.Error()))
		if err := p.served(t)(); err != nil {
			t.Error(err)
		}
		k.set(func() { k.err = nil })
		k.set(func() {
			k.states[vip] = edge.AddressState{Conflict: "52:54:00:00:00:07", Error: "somebody else has it"}
		})
		eventually(t, "the conflict is shown", row(d, "10.11.12.70")("conflict eth1 [shop/web]"))
		eventually(t, "closed", p.refused(t))
	})
}

// A port that another program has at every address is not in the wall: who
// connects would come to that program.
func TestNetnsTheWallHasNoDoorOfOthers(t *testing.T) {
	netnstest.Run(t, func() {
		p := newPoolSite(t, "web")
		other, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", p.port))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		k := newFakeKeeper()
		k.states[netip.MustParseAddr("10.11.12.70")] = edge.AddressState{Ready: true}
		d, _ := startWith(t, p.file, k)
		eventually(t, "it is said", func() error {
			for _, e := range d.Status().Exposures {
				if !e.Open && strings.Contains(e.Reason, "in use") {
					return nil
				}
			}
			return fmt.Errorf("%+v", d.Status().Exposures)
		})
		k.get(func() {
			if len(k.doors) > 0 {
				t.Errorf("the wall has %v", k.doors)
			}
		})
		other.Close()
		eventually(t, "served", p.served(t))
		eventually(t, "a door in the wall", func() (err error) {
			k.get(func() {
				if len(k.doors) != 1 {
					err = fmt.Errorf("%v", k.doors)
				}
			})
			return err
		})
	})
}

// The address of a Service that was deleted is nobody else's for a while, also
// across a restart, and the Service of that name has it again.
func TestNetnsAnAddressThatWasLeftIsHeld(t *testing.T) {
	netnstest.Run(t, func() {
		p := newPoolSite(t, "a", "b")
		k := newFakeKeeper()
		d, stop := startWith(t, p.file, k)
		eventually(t, "a has the first", row(d, "10.11.12.70")("pending eth1 [shop/a]"))
		eventually(t, "b has the second", row(d, "10.11.12.71")("pending eth1 [shop/b]"))
		p.has("b", "c", "d")
		eventually(t, "held", row(d, "10.11.12.70")("held  [shop/a]"))
		eventually(t, "c has the third", row(d, "10.11.12.72")("pending eth1 [shop/c]"))
		until := d.Status().Addresses[0].Until
		if left := time.Until(until); left < 30*time.Second || left > holdAddresses {
			t.Errorf("held for another %s", left)
		}
		stop()

		d, _ = startWith(t, p.file, newFakeKeeper())
		eventually(t, "c has the third", row(d, "10.11.12.72")("pending eth1 [shop/c]"))
		eventually(t, "held after a restart", row(d, "10.11.12.70")("held  [shop/a]"))
		if again := d.Status().Addresses[0].Until; !again.Equal(until) {
			t.Errorf("held until %s, and before the restart it was until %s", again, until)
		}
		p.has("a", "b", "c", "d")
		eventually(t, "a has it again", row(d, "10.11.12.70")("pending eth1 [shop/a]"))
	})
}

// Whoever has no pools has no keeper.
func TestNothingIsKeptWithoutPools(t *testing.T) {
	o := newOutage(t)
	o.api.serve(t)
	k := newFakeKeeper()
	_, stop := startWith(t, o.file, k)
	eventually(t, "served", serves(o.front, "one"))
	stop()
	k.get(func() {
		if len(k.calls) > 0 {
			t.Errorf("called: %v", k.calls)
		}
	})
}

// What a process before has put there is not taken away before the cluster has
// been read; nor once there are no pools any more, without being told.
func TestNetnsAddressesWaitForTheCluster(t *testing.T) {
	netnstest.Run(t, func() {
		p := newPoolSite(t, "web")
		p.api.stop()
		k := newFakeKeeper()
		d, _ := startWith(t, p.file, k)
		eventually(t, "the API is away", func() error {
			if c := d.Status().Cluster; c == nil || c.Error == "" {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
		k.get(func() {
			if slices.Contains(k.calls, "apply") || !slices.Contains(k.calls, "adopt") || k.running != 1 {
				t.Errorf("called: %v; %d run", k.calls, k.running)
			}
		})
		p.api.serve(t)
		wants := func(n int) func() error {
			return func() (err error) {
				k.get(func() {
					if len(k.wanted) != n {
						err = fmt.Errorf("%v", k.wanted)
					}
				})
				return err
			}
		}
		eventually(t, "wanted", wants(1))
		text, err := os.ReadFile(p.file)
		if err != nil {
			t.Fatal(err)
		}
		before, rest, _ := strings.Cut(string(text), "pools:")
		_, after, _ := strings.Cut(rest, "\n")
		write(t, p.file, before+after)
		eventually(t, "not wanted any more", wants(0))
	})
}

// Addresses of pools that are not in the file any more when the next process
// begins go, and what has their port now is not served there.
func TestNetnsAddressesOfBeforeGo(t *testing.T) {
	netnstest.Run(t, func() {
		p := newPoolSite(t, "web")
		sh(t, "ip address add 10.11.12.75/32 dev eth1 scope host metric 9191")
		text, err := os.ReadFile(p.file)
		if err != nil {
			t.Fatal(err)
		}
		before, rest, _ := strings.Cut(string(text), "pools:")
		_, after, _ := strings.Cut(rest, "\n")
		write(t, p.file, before+after)
		other := New(Options{Files: []string{p.file}, Log: slog.New(slog.DiscardHandler)})
		other.kernel.running = func() ([]int, error) { return []int{os.Getpid(), 1}, nil }
		if other.addresses.areLeft() {
			t.Error("those of another gatehouse that runs were left")
		}
		start(t, p.file)
		served := func(addr string) (err error) {
			p.client.Do(t, func() { err = serves(p.at(addr), "one")() })
			return err
		}
		eventually(t, "served at the interface's own address", func() error { return served("10.11.12.1") })
		if served("10.11.12.75") == nil {
			t.Error("served at an address of before")
		}
		eventually(t, "it is gone", func() error {
			if text := sh(t, "ip address show dev eth1"); strings.Contains(text, "10.11.12.75") {
				return errors.New(text)
			}
			return nil
		})
	})
}

// Two processes do not keep the same addresses.
func TestARetiredKeeperRests(t *testing.T) {
	k := newFakeKeeper()
	kicked := 0
	a := &addresses{log: slog.New(slog.DiscardHandler), keeper: k, changed: func() { kicked++ }}
	runs := func(n int) func() error {
		return func() (err error) {
			k.get(func() {
				if k.running != n {
					err = fmt.Errorf("%d run", k.running)
				}
			})
			return err
		}
	}
	a.want(t.Context())
	eventually(t, "it runs", runs(1))
	a.retire(true)
	if err := runs(0)(); err != nil {
		t.Error(err)
	}
	a.want(t.Context())
	if err := runs(0)(); err != nil {
		t.Error("while another has taken over:", err)
	}
	a.retire(false)
	a.want(t.Context())
	eventually(t, "it runs again", runs(1))
	if kicked == 0 {
		t.Error("nobody decides anew")
	}
	a.task.stop()
}

func TestDoorsAt(t *testing.T) {
	vip, other := netip.MustParseAddr("10.0.0.70"), netip.MustParseAddr("10.0.0.9")
	door := func(addr netip.Addr, port uint16) edge.Door {
		return edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Addr: addr, Port: port}}
	}
	state := desired.State{
		Addresses: []edge.Address{{Addr: vip, Device: "eth1"}},
		Frontends: []edge.Frontend{
			{Door: door(vip, 443), Name: "a", Hostnames: []string{"a"}},
			{Door: door(vip, 443), Name: "b", Hostnames: []string{"b"}},
			{Door: door(vip, 80)},
			{Door: door(vip, 22)},
			{Door: door(netip.Addr{}, 80)},
			{Door: door(other, 80)},
		},
	}
	got := doorsAt(state, map[edge.Door]string{door(vip, 22): "in use"}, []edge.Door{door(vip, 25), door(other, 25), door(vip, 80)})
	if want := []edge.Door{door(vip, 25), door(vip, 80), door(vip, 443)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
