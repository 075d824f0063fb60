package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/laststate"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// outage is a cluster of one Service with a backend, and a daemon's files.
type outage struct {
	api              *apiServer
	file, stateDir   string
	front            string // where the Service is to be open
	services, slices []object
}

// newOutage has four Services, of which the first is served: fewer are not
// missed.
func newOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{api: newAPIServer(t), stateDir: filepath.Join(t.TempDir(), "state"), file: filepath.Join(t.TempDir(), "gatehouse.yaml")}
	_, nodePort := portOf(t, echo(t, "one"))
	for i := range 4 {
		front, port := portOf(t, freeAddr(t))
		if i == 0 {
			o.front = front
		}
		service, slice := serviceAt(fmt.Sprintf("web%d", i), port, nodePort)
		o.services, o.slices = append(o.services, service), append(o.slices, slice)
	}
	o.api.set("services", o.services...)
	o.api.set("endpointslices", o.slices...)
	o.api.set("nodes", nodeAt("127.0.0.1"))
	write(t, o.file, fmt.Sprintf(`apiVersion: gatehouse.e13.dev/v1
stateDir: %q
zones: {home: {interfaces: [lo]}}
kubernetes: {kubeconfig: %q, holdLosses: 1h, health: {interval: 0s}, healthzPort: 0}
`, o.stateDir, o.api.kubeconfig(t)))
	return o
}

func portOf(t *testing.T, addr string) (string, int) {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return addr, n
}

// saved waits until a state with so many Services is kept.
func (o *outage) saved(t *testing.T, services int) {
	t.Helper()
	eventually(t, "saved", func() error {
		data, err := os.ReadFile(filepath.Join(o.stateDir, "cluster"))
		if err != nil {
			return err
		}
		s, err := laststate.Decode(data)
		if err == nil && len(s.Cluster.Services) != services {
			err = fmt.Errorf("%d Services", len(s.Cluster.Services))
		}
		return err
	})
}

// What the API has said is served by the next process, too, when it is away; and
// the cluster hears nothing of what follows from that.
func TestTheLastStateIsServedAtOnce(t *testing.T) {
	o := newOutage(t)
	o.api.serve(t)
	t.Run("before", func(t *testing.T) {
		d := start(t, o.file)
		eventually(t, "served", serves(o.front, "one"))
		o.saved(t, 4)
		if c := d.Status().Cluster; c.From != "" || !c.Synced || c.Services != 4 || len(c.Requests) == 0 {
			t.Errorf("the status says %+v", c)
		}
	})
	o.api.stop()
	written := len(o.api.written())
	for i := range o.services {
		o.services[i] = announced(o.services[i], "127.0.0.1")
	}
	_, port := portOf(t, freeAddr(t))
	service, slice := serviceAt("news", port, 1)
	o.api.set("services", append(o.services, service)...)
	o.api.set("endpointslices", append(o.slices, slice)...)

	d := start(t, o.file)
	eventually(t, "served without the API", serves(o.front, "one"))
	eventually(t, "decided", func() error {
		if d.Status().Cluster.Services == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	s := d.Status()
	if c := s.Cluster; c.From != o.stateDir || c.Synced || c.Services != 4 || time.Since(c.SavedAt) > time.Minute {
		t.Errorf("the status says %+v", c)
	}
	if !s.Ready {
		t.Errorf("not ready: %v", s.NotReady)
	}
	eventually(t, "stale once it is known to be away", func() error {
		if c := d.Status().Cluster; c.StaleSince.IsZero() || c.Error == "" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	o.api.serve(t)
	eventually(t, "the API again", func() error {
		if c := d.Status().Cluster; c.From != "" || !c.Synced || !c.StaleSince.IsZero() {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	told := func() (events []string) {
		for _, w := range o.api.written()[written:] {
			if strings.Contains(w, "/events") {
				events = append(events, w)
			}
		}
		return events
	}
	eventually(t, "news are told", func() error {
		if len(told()) == 0 {
			return errors.New("nothing is told")
		}
		return nil
	})
	for _, e := range told() {
		if !strings.Contains(e, "news") {
			t.Errorf("told, though nothing is new: %s", e)
		}
	}
}

// A state of another cluster opens nothing.
func TestTheStateOfAnotherClusterIsNotServed(t *testing.T) {
	o := newOutage(t)
	o.api.serve(t)
	t.Run("before", func(t *testing.T) {
		start(t, o.file)
		o.saved(t, 4)
	})
	o.api.stop()
	data, err := os.ReadFile(o.file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "kubeconfig: \"")
	kubeconfig, _, _ := strings.Cut(rest, "\"")
	there, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	write(t, kubeconfig, strings.ReplaceAll(string(there), o.api.addr, "127.0.0.2:6443"))
	d := start(t, o.file)
	eventually(t, "it is asked", func() error {
		s := d.Status()
		if s.Cluster == nil || s.Cluster.Error == "" {
			return fmt.Errorf("%+v", s.Cluster)
		}
		return nil
	})
	if s := d.Status(); len(s.Frontends) > 0 || s.Cluster.From != "" || s.Ready {
		t.Errorf("%+v, ready %t, with %d frontends", s.Cluster, s.Ready, len(s.Frontends))
	}
}

// An API server that has lost its data is not believed, before a restart and
// after it, until the operator says so.
func TestAnEmptyClusterIsNotBelieved(t *testing.T) {
	o := newOutage(t)
	o.api.serve(t)
	held := func(d *Daemon) func() error {
		return func() error {
			s := d.Status()
			if s.Cluster == nil || s.Cluster.Held == nil {
				return fmt.Errorf("%+v", s.Cluster)
			}
			d.mu.Lock()
			synced := d.seen.synced
			d.mu.Unlock()
			if synced {
				return errors.New("the cluster would be told what follows from what it does not say")
			}
			for _, p := range s.Problems {
				if strings.Contains(p.What, "suddenly lacks 4 of 4 Services") && strings.Contains(p.Remedy, "SIGHUP") {
					return nil
				}
			}
			return fmt.Errorf("problems: %v", s.Problems)
		}
	}
	var written int
	t.Run("while it runs", func(t *testing.T) {
		d := start(t, o.file)
		eventually(t, "served", serves(o.front, "one"))
		o.saved(t, 4)
		eventually(t, "written", func() error {
			if len(o.api.written()) < 4 {
				return fmt.Errorf("%v", o.api.written())
			}
			return nil
		})
		o.api.set("services")
		eventually(t, "held", held(d))
		written = len(o.api.written())
		if err := serves(o.front, "one")(); err != nil {
			t.Error(err)
		}
	})
	o.saved(t, 4) // and not the empty one

	d := start(t, o.file)
	eventually(t, "held after a restart", held(d))
	if err := serves(o.front, "one")(); err != nil {
		t.Error(err)
	}
	if w := o.api.written(); len(w) > written {
		t.Errorf("written while it is held: %v", w[written:])
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "believed", func() error {
		if s := d.Status(); s.Cluster.Held != nil || len(s.Frontends) > 0 || s.Cluster.Services != 0 {
			return fmt.Errorf("%+v, %d frontends", s.Cluster, len(s.Frontends))
		}
		return nil
	})
	o.saved(t, 0)
}

// What is not believed stays so across an upgrade, also without a state on disk.
func TestUpgradeDoesNotBelieveMore(t *testing.T) {
	o := newOutage(t)
	o.api.serve(t)
	admin := freeAddr(t)
	data, err := os.ReadFile(o.file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "stateDir:") {
			lines = append(lines, line)
		}
	}
	write(t, o.file, strings.Join(append(lines, "admin: {listen: \""+admin+"\"}\n"), ""))
	d, log, _, _ := upgradable(t, o.file, o.file)
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "served", serves(o.front, "one"))
	o.api.set("services")
	eventually(t, "held", func() error {
		if d.Status().Cluster.Held == nil {
			return errors.New("not yet")
		}
		return nil
	})
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "handed over", log.has("upgrade done"))
	eventually(t, "the successor does not believe it either", func() error {
		resp, err := http.Get("http://" + admin + "/status.json")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var s status.Status
		if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
			return err
		}
		if s.Version != "successor" || s.Cluster.Held == nil || s.Cluster.Services != 4 {
			return fmt.Errorf("%s: %+v", s.Version, s.Cluster)
		}
		return nil
	})
	if err := serves(o.front, "one")(); err != nil {
		t.Error(err)
	}
}

// The state goes by a file that is on no disk.
func TestStateIsHandedOver(t *testing.T) {
	want := laststate.State{Source: "here", SavedAt: time.Unix(1_800_000_000, 0).UTC(), Cluster: *site(2, 1, 1)}
	sockets, err := pack(relay.Handover{}, nil, &want)
	if err != nil || len(sockets) != 1 {
		t.Fatalf("%d sockets, %v", len(sockets), err)
	}
	_, _, got, err := unpack(sockets)
	if err != nil || got == nil {
		t.Fatal(got, err)
	}
	for i := range want.Cluster.Services { // as JSON has them
		got.Cluster.Services[i].Created = want.Cluster.Services[i].Created
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
	if sockets, err := pack(relay.Handover{}, nil, nil); err != nil || len(sockets) != 0 {
		t.Errorf("%d sockets, %v, where there is nothing", len(sockets), err)
	}
}
