package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nat"
)

var (
	homeDoor  = edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 80}}
	frontAddr = netip.MustParseAddrPort("10.11.12.32:80")
	pod1      = netip.MustParseAddrPort("10.244.1.2:8080")
	pod2      = netip.MustParseAddrPort("10.244.2.2:8080")
)

func newTestKernel(t *testing.T) *kernel {
	k := newKernel(slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
	k.own = map[netip.Addr]string{frontAddr.Addr(): "eth1"}
	return k
}

// wants is what follow is told: that these are the frontends from now on.
func (k *kernel) wants(frontends ...edge.Frontend) {
	k.wanted = nat.State{Frontends: frontends}
	k.followLocked(nil)
}

func translated(door edge.Door, backends ...edge.Backend) edge.Frontend {
	return edge.Frontend{Door: door, DataPlane: edge.DataPlaneNAT, Backends: backends}
}

func up(a netip.AddrPort) edge.Backend {
	return edge.Backend{Addr: a, Weight: 1, State: edge.Up, Share: 0.5}
}

func down(a netip.AddrPort) edge.Backend {
	return edge.Backend{Addr: a, Weight: 1, State: edge.Down}
}

func tried(a netip.AddrPort) edge.Backend {
	return edge.Backend{Addr: a, Weight: 1, State: edge.Down, Share: 0.5}
}

// What becomes of a flow to pod1, of a frontend that has had pod1 and pod2.
func TestFlowsThatAreForgotten(t *testing.T) {
	closing := translated(homeDoor, down(pod1), up(pod2))
	closing.CloseWhenDown = true
	ending := translated(homeDoor, up(pod2))
	ending.Terminating = []netip.AddrPort{pod1}
	drained := translated(homeDoor, up(pod2))
	drained.DrainTimeout = time.Minute
	elsewhere := homeDoor
	elsewhere.Listen.Device = "eth0"
	const (
		tcpNew = 1 << iota
		tcpOpen
		tcpReset
		udp
	)
	both := func(f edge.Frontend) []edge.Frontend {
		u := f
		u.Protocol = edge.UDP
		return []edge.Frontend{f, u}
	}
	for name, c := range map[string]struct {
		now   []edge.Frontend
		after time.Duration
		want  int
	}{
		"nothing has changed":                    {now: both(translated(homeDoor, up(pod1), up(pod2)))},
		"it is down":                             {now: both(translated(homeDoor, down(pod1), up(pod2))), want: tcpNew | tcpReset | udp},
		"all are down, and tried":                {now: both(translated(homeDoor, tried(pod1), tried(pod2)))},
		"it is down, and open ones are to close": {now: both(closing), want: tcpNew | tcpOpen | tcpReset | udp},
		"it has gone":                            {now: both(translated(homeDoor, up(pod2))), want: tcpNew | tcpReset | udp},
		"it has left the zone, not another":      {now: both(translated(elsewhere, up(pod1), up(pod2))), want: udp | tcpNew | tcpReset},
		"it is terminating":                      {now: both(ending)},
		"it has gone from this zone only":        {now: append(both(translated(homeDoor, up(pod2))), both(translated(elsewhere, up(pod1)))[0]), want: udp},
		"it has gone, and drains":                {now: both(drained), after: 59 * time.Second, want: tcpNew | tcpReset | udp},
		"it has gone, and has drained":           {now: both(drained), after: 61 * time.Second, want: tcpNew | tcpOpen | tcpReset | udp},
		"the frontend has gone":                  {want: tcpNew | tcpReset | udp},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTestKernel(t)
			k.wants(both(translated(homeDoor, up(pod1), up(pod2)))...)
			k.purges = 0
			k.wants(c.now...)
			if purges := k.purges > 0; purges != (c.want != 0) {
				t.Errorf("it looks for flows to forget: %t", purges)
			}
			later := time.Now().Add(c.after)
			for bit, f := range map[int]conntrack.Flow{
				tcpNew:   {Protocol: edge.TCP, State: conntrack.SynSent},
				tcpOpen:  {Protocol: edge.TCP, State: conntrack.Established},
				tcpReset: {Protocol: edge.TCP, State: conntrack.Close},
				udp:      {Protocol: edge.UDP, Replied: true},
			} {
				f.Front, f.Backend, f.DNAT = frontAddr, pod1, true
				if got, want := k.doomedLocked(f, later), c.want&bit != 0; got != want {
					t.Errorf("%s %s is forgotten: %t, want %t", f.Protocol, f.State, got, want)
				}
				// The same through an address that is not this machine's: somebody else's
				// translation, kube-proxy's of a cluster IP for one.
				f.Front = netip.MustParseAddrPort("10.96.0.10:80")
				if k.doomedLocked(f, later) {
					t.Errorf("a flow of somebody else is forgotten")
				}
				// Or Docker's, which publishes the port at another interface.
				f.Front, f.Backend = frontAddr, netip.MustParseAddrPort("172.17.0.2:80")
				if k.doomedLocked(f, later.Add(time.Hour)) {
					t.Errorf("a flow to a backend of somebody else is forgotten")
				}
				f.Front, f.Backend = frontAddr, pod2
				if k.doomedLocked(f, later) && c.now != nil && c.now[0].Listen == homeDoor.Listen {
					t.Errorf("%s %s to a backend that is well is forgotten", f.Protocol, f.State)
				}
			}
		})
	}
}

// What is known of backends that are gone does not grow for months, nor is
// conntrack walked through for their sake.
func TestWhoIsGoneIsForgottenWithItsLastFlow(t *testing.T) {
	k := newTestKernel(t)
	other := homeDoor
	other.Listen.Port = 81
	k.wants(translated(homeDoor, up(pod1), up(pod2)), translated(other, up(pod1)))
	k.wants(translated(homeDoor, up(pod2)))
	open := []conntrack.Flow{{Protocol: edge.TCP, State: conntrack.Established, Front: frontAddr, Backend: pod1}}
	if k.forgetBackendsLocked(nil); len(k.behind) != 2 || !k.dueLocked() {
		t.Fatalf("forgotten at once, while flows may begin: %v", k.behind)
	}
	k.purges = 0
	if k.forgetBackendsLocked(open); len(k.behind) != 1 || !k.dueLocked() || !k.behind[serviceOf(homeDoor)].has(pod1) {
		t.Errorf("with a flow left there is %v", k.behind)
	}
	if k.forgetBackendsLocked(nil); k.dueLocked() || !k.behind[serviceOf(homeDoor)].has(pod2) {
		t.Errorf("without, there is %v", k.behind)
	}
}

// A door that the relay takes is nothing that has gone: connections that the
// kernel has of it end by themselves. UDP clients may go on for ever, and would
// with a backend that has died.
func TestFlowsOfADoorThatMoves(t *testing.T) {
	for protocol, forgotten := range map[edge.Protocol]bool{edge.TCP: false, edge.UDP: true} {
		k, door := newTestKernel(t), homeDoor
		door.Protocol = protocol
		k.wants(translated(door, up(pod1)))
		k.wanted = nat.State{}
		k.followLocked(map[edge.Door]bool{door: true})
		f := conntrack.Flow{Protocol: protocol, State: conntrack.SynSent, Front: frontAddr, Backend: pod1}
		if got := k.doomedLocked(f, time.Now()); got != forgotten {
			t.Errorf("its flows of %s are forgotten: %t", protocol, got)
		}
	}
}

// The relay keeps a door that the kernel has taken, for clients whose handshake
// has begun; and then no longer.
func TestDoorsLinger(t *testing.T) {
	d := &Daemon{kernel: newTestKernel(t)}
	before := edge.Frontend{Door: homeDoor, Name: "web", Why: "before"}
	if got := d.toRelay(desired.State{Frontends: []edge.Frontend{before}}, false); len(got) != 1 {
		t.Fatalf("the relay has %v", got)
	}
	moved := desired.State{Frontends: []edge.Frontend{translated(homeDoor, up(pod1))}}
	for range 2 {
		if got := d.toRelay(moved, false); len(got) != 1 || got[0].Why != "before" {
			t.Fatalf("the relay has %v, want the door as it had it", got)
		}
	}
	d.lingering[homeDoor] = lingerer{d.lingering[homeDoor].frontends, time.Now()}
	if got := d.toRelay(moved, false); len(got) != 0 {
		t.Errorf("the relay still has %v", got)
	}
	// And back again at once.
	d.toRelay(desired.State{Frontends: []edge.Frontend{before}}, false)
	d.toRelay(moved, false)
	if got := d.toRelay(desired.State{Frontends: []edge.Frontend{before}}, false); len(got) != 1 || len(d.lingering) != 0 {
		t.Errorf("the relay has %v, lingering %v", got, d.lingering)
	}
	// One that is closed is closed at once.
	d.toRelay(desired.State{Frontends: []edge.Frontend{before}}, false)
	d.toRelay(moved, false)
	if got := d.toRelay(desired.State{}, false); len(got) != 0 {
		t.Errorf("the relay keeps %v, which is closed", got)
	}
	d.toRelay(desired.State{Frontends: []edge.Frontend{before}}, false)
	// A door that the kernel could not have stays nobody's.
	d.kernel.taken[homeDoor] = "taken"
	if got := d.toRelay(moved, false); len(got) != 0 {
		t.Errorf("the relay keeps %v, which the kernel has not taken", got)
	}
}

// The row of a frontend adds up what its backends have had, those that are
// forgotten included; who is gone and has flows left drains.
func TestWhatTheKernelHasMoved(t *testing.T) {
	gone, idle := netip.MustParseAddrPort("10.244.3.2:8080"), netip.MustParseAddrPort("10.244.3.3:8080")
	count := func(n uint64) nat.Count {
		return nat.Count{Connections: n, PacketsToBackend: 2 * n, BytesToBackend: 3 * n, PacketsToClient: 4 * n, BytesToClient: 5 * n}
	}
	m := moved{
		now: map[edge.Door]map[netip.AddrPort]flows{homeDoor: {
			pod1: {Count: count(1), active: 1}, gone: {Count: count(10), active: 2}, idle: {Count: count(100)},
		}},
		past: map[edge.Door]nat.Count{homeDoor: count(1000)},
	}
	row := m.frontend(translated(homeDoor, up(pod1), down(pod2)))
	if row.Accepted != 1111 || row.Active != 3 || row.Received != 3333 || row.Sent != 5555 || row.Packets.Received != 2222 || row.Packets.Sent != 4444 {
		t.Errorf("all in all %+v, %+v", row.Traffic, *row.Packets)
	}
	var got []string
	for _, b := range row.Backends {
		got = append(got, fmt.Sprintf("%s %s %d of %d, %d bytes", b.Addr, b.State, b.Active, b.Total, b.Received))
	}
	want := []string{
		"10.244.1.2:8080 up 1 of 1, 3 bytes", "10.244.2.2:8080 down 0 of 0, 0 bytes", "10.244.3.2:8080 draining 2 of 10, 30 bytes",
	}
	if !slices.Equal(got, want) {
		t.Errorf("backends\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A backend that gets packets and gives none is suspected, as long as it gets
// some and that is news; one that answers, or is left alone, is not.
func TestWhoDoesNotAnswerIsSuspected(t *testing.T) {
	var suspects []netip.AddrPort
	k := newTestKernel(t)
	k.suspect = func(_ edge.Protocol, backend netip.AddrPort) { suspects = append(suspects, backend) }
	k.wants(translated(homeDoor, up(pod1), up(pod2)))
	now := time.Now()
	counts := map[netip.AddrPort]nat.Count{pod1: {PacketsToBackend: 10}, pod2: {PacketsToBackend: 10, PacketsToClient: 10}}
	look := func(after time.Duration) []netip.AddrPort {
		suspects, now = nil, now.Add(after)
		var list []nat.Count
		for addr, c := range counts {
			c.Door, c.Backend = homeDoor, addr
			// Answers may leave by another interface.
			out := nat.Count{Door: homeDoor, Backend: addr, PacketsToClient: c.PacketsToClient}
			out.Door.Listen.Device = "eth0"
			c.PacketsToClient = 0
			list = append(list, c, out)
		}
		k.listenLocked(list, now)
		return suspects
	}
	got := func(addr netip.AddrPort, toBackend, toClient uint64) {
		c := counts[addr]
		c.PacketsToBackend += toBackend
		c.PacketsToClient += toClient
		counts[addr] = c
	}
	if s := look(0); s != nil {
		t.Errorf("at the first look %v", s)
	}
	for range 3 {
		got(pod1, 1, 0)
		got(pod2, 5, 1)
		if s := look(kernelPace); !slices.Equal(s, []netip.AddrPort{pod1}) {
			t.Errorf("suspected %v, want the one that has not answered", s)
		}
	}
	if s := look(kernelPace); s != nil {
		t.Errorf("nothing was sent, and suspected %v", s)
	}
	got(pod1, 1, 0)
	if s := look(kernelSilent); s != nil {
		t.Errorf("that it is silent is no news, and suspected %v", s)
	}
	got(pod1, 1, 1)
	if s := look(kernelPace); s != nil {
		t.Errorf("it has answered, and suspected %v", s)
	}
	got(pod1, 1, 0)
	if s := look(kernelPace); len(s) != 1 {
		t.Errorf("suspected %v, want the one that answers no more", s)
	}
	// One that comes later is heard of from the start.
	k.wants(translated(homeDoor, up(pod1), up(pod2), up(netip.MustParseAddrPort("10.244.3.2:8080"))))
	counts = map[netip.AddrPort]nat.Count{netip.MustParseAddrPort("10.244.3.2:8080"): {PacketsToBackend: 1}}
	if s := look(kernelPace); len(s) != 1 {
		t.Errorf("suspected %v, want the one that has never answered", s)
	}
}

// Others' rules that drop what is forwarded are told as long as they do: nothing
// has got through since the last look, and something came.
func TestObstaclesThatLetThrough(t *testing.T) {
	k := newTestKernel(t)
	k.wants(translated(homeDoor, up(pod1)))
	for i, step := range []struct {
		came, got, answered uint64
		want                bool
	}{
		{0, 0, 0, false}, // not known: better told
		{2, 0, 0, false},
		{3, 1, 0, true},
		{3, 1, 0, true}, // nobody came
		{9, 1, 3, true}, // a connection goes on
		{12, 1, 3, false},
		{13, 2, 4, true},
	} {
		k.lastCounts = []nat.Count{{Door: homeDoor, Backend: pod1, Connections: step.got, PacketsToBackend: step.came, PacketsToClient: step.answered}}
		if got := k.passLocked(); got != step.want {
			t.Errorf("step %d: connections get through: %t, want %t", i, got, step.want)
		}
	}
}

// The status is there also while the nft command takes its time.
func TestStatusDoesNotWaitForTheKernel(t *testing.T) {
	d := New(Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	d.kernel.taken[homeDoor] = "taken"
	d.Status()
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	said := make(chan struct{})
	go func() {
		defer close(said)
		d.Status()
	}()
	select {
	case <-said:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits")
	}
	if got := d.kernel.tell(t.Context()).closed[homeDoor]; got != "taken" {
		t.Errorf("of the door it says %q", got)
	}
}

// What goes on failing, four times a second, is logged once.
func TestWhatGoesOnFailingIsNoNews(t *testing.T) {
	k := newTestKernel(t)
	for i, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {errors.New("one"), true}, {errors.New("one"), false}, {errors.New("two"), true}, {nil, false}, {errors.New("two"), true},
	} {
		if got := k.isNewsLocked("look", c.err); got != c.want {
			t.Errorf("%d: %v is news: %t", i, c.err, got)
		}
	}
}

// The log has a door once, when the kernel takes it and when it gives it up.
func TestDoorsAreLogged(t *testing.T) {
	var log strings.Builder
	k := newKernel(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})), nil)
	web := translated(homeDoor)
	web.Name, web.Zone, web.Why = "shop/web:80", "home", "service/shop/web"
	const opened = `msg="frontend opened" frontend=shop/web:80 zone=home data_plane=nat listen="TCP @eth1:80" why=service/shop/web` + "\n"
	const closed = `msg="frontend closed" frontend=shop/web:80 data_plane=nat listen="TCP @eth1:80" reason=removed` + "\n"
	for _, c := range []struct {
		name          string
		before, after []edge.Frontend
		want          string
	}{
		{"new", nil, []edge.Frontend{web}, opened},
		{"the same", []edge.Frontend{web}, []edge.Frontend{web}, ""},
		{"gone", []edge.Frontend{web}, nil, closed},
		{"adopted, and not known whose", nil, []edge.Frontend{adopted(homeDoor)}, ""},
		{"adopted, and known", []edge.Frontend{adopted(homeDoor)}, []edge.Frontend{web}, opened},
	} {
		log.Reset()
		k.sayDoors(c.before, c.after)
		if log.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, log.String(), c.want)
		}
	}
}

// Whoever asks whether it is ready hears that a whole data plane is not.
func TestNotReadyWithoutTheKernel(t *testing.T) {
	d := &Daemon{log: slog.New(slog.NewTextHandler(t.Output(), nil)), addresses: &addresses{}}
	for why, want := range map[string]bool{"": true, "the nft command is not installed": false} {
		d.publish(decision{in: desired.Inputs{Config: &config.Config{}, NoNAT: why}}, view{}, 0)
		if d.ready != want || !want && !strings.Contains(d.waiting[0], why) {
			t.Errorf("%q: ready %t, waiting for %q", why, d.ready, d.waiting)
		}
	}
}
