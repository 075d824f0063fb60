package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// frontendNow is a row of frontends in /status.json, as far as the tests look at it.
type frontendNow struct {
	Name     string            `json:"name"`
	Listen   string            `json:"listen"`
	Draining bool              `json:"draining"`
	Accepted uint64            `json:"acceptedConnections"`
	Active   uint64            `json:"activeConnections"`
	Ended    map[string]uint64 `json:"endedConnections"`
	Failures map[string]uint64 `json:"failures"`
	Backends []backendNow      `json:"backends"`

	MaxRatePerClient string `json:"maxRatePerClient"`
	BanTime          string `json:"banTime"`
	Banned           []struct {
		Client string    `json:"client"`
		Until  time.Time `json:"until"`
	} `json:"banned"`
}

type backendNow struct {
	Addr          string    `json:"addr"`
	State         string    `json:"state"`
	Error         string    `json:"error"`
	Failures      uint64    `json:"failures"`
	Draining      bool      `json:"draining"`
	DrainTimeout  string    `json:"drainTimeout"`
	DrainingSince time.Time `json:"drainingSince"`
	DrainingUntil time.Time `json:"drainingUntil"`
	Weight        int       `json:"weight"`
	Total         uint64    `json:"totalConnections"`
	Active        uint64    `json:"activeConnections"`
}

// openAt is the frontend that the status has at a port, if it is there.
func openAt(t *testing.T, port int) (frontendNow, bool) {
	t.Helper()
	_, body := admin(t, "/status.json")
	var s struct {
		Frontends []frontendNow `json:"frontends"`
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Frontends {
		if strings.HasSuffix(f.Listen, fmt.Sprintf(":%d", port)) {
			return f, true
		}
	}
	return frontendNow{}, false
}

func (f frontendNow) backend(addr string) (backendNow, bool) {
	for _, b := range f.Backends {
		if b.Addr == addr {
			return b, true
		}
	}
	return backendNow{}, false
}

// weights is who is in turn for new connections, as "addr=weight …".
func (f frontendNow) weights() string {
	var out []string
	for _, b := range f.Backends {
		if !b.Draining && b.Weight > 0 {
			out = append(out, fmt.Sprintf("%s=%d", b.Addr, b.Weight))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// writeConfig is how editors do it: a new file takes the name of the old one.
func writeConfig(text string) error {
	next := filepath.Join(filepath.Dir(configFile), ".gatehouse.yaml.swp")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(next, configFile)
}

// restoreConfig leaves the first configuration to the tests that come.
func restoreConfig(t *testing.T) {
	t.Cleanup(func() {
		if err := writeConfig(config); err != nil {
			t.Error(err)
		}
		eventually(t, 10*time.Second, "the first file is back", func() error {
			s := statusNow(t)
			for _, e := range s.Exposures {
				if e.Service == "" {
					return fmt.Errorf("%s is still there", e.Name)
				}
			}
			if !s.Config.Current {
				return errors.New("it is not the one that runs")
			}
			return nil
		})
	})
}

// bare is a Service without a selector: its endpoints are what the test says.
func bare(ns, name, protocol string, port, targetPort int, annotations map[string]string) *corev1.Service {
	class, no := "gatehouse.e13.dev/edge", false
	all := map[string]string{"gatehouse.e13.dev/zones": "home", "gatehouse.e13.dev/target": "pod"}
	maps.Copy(all, annotations)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: all}}
	s.Spec.Type, s.Spec.LoadBalancerClass, s.Spec.AllocateLoadBalancerNodePorts = corev1.ServiceTypeLoadBalancer, &class, &no
	s.Spec.Ports = []corev1.ServicePort{{Protocol: corev1.Protocol(protocol), Port: int32(port)}}
	s.Spec.Ports[0].TargetPort.IntVal = int32(targetPort)
	return s
}

// condition of an endpoint.
type condition int

const (
	ready condition = iota
	notReady
	terminating // and still serving
	absent
)

// slice is the EndpointSlice of a bare Service: one endpoint on each worker, at the worker's address.
func slice(s *corev1.Service, conditions ...condition) *discoveryv1.EndpointSlice {
	none, port := "", s.Spec.Ports[0].TargetPort.IntVal
	e := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &none, Protocol: &s.Spec.Ports[0].Protocol, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{},
	}
	for i, c := range conditions {
		if c == absent {
			continue
		}
		node := fmt.Sprintf("w%d", i+1)
		isReady, serving, ending := c == ready, c != notReady, c == terminating
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.0.0.10%d", i+1)}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &isReady, Serving: &serving, Terminating: &ending},
		})
	}
	return e
}

// create makes a bare Service with its endpoints.
func create(t *testing.T, s *corev1.Service, conditions ...condition) {
	t.Helper()
	_, err := kube.CoreV1().Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{})
	if err == nil {
		_, err = kube.DiscoveryV1().EndpointSlices(s.Namespace).Create(t.Context(), slice(s, conditions...), metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// set changes the endpoints of a bare Service.
func set(t *testing.T, s *corev1.Service, conditions ...condition) {
	t.Helper()
	if _, err := kube.DiscoveryV1().EndpointSlices(s.Namespace).Update(t.Context(), slice(s, conditions...), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// annotate sets annotations; "" removes one.
func annotate(t *testing.T, s *corev1.Service, annotations map[string]string) {
	t.Helper()
	values := map[string]any{}
	for k, v := range annotations {
		values[k] = v
		if v == "" {
			values[k] = nil
		}
	}
	patch(t, s, map[string]any{"metadata": map[string]any{"annotations": values}})
}

func patch(t *testing.T, s *corev1.Service, change any) {
	t.Helper()
	text, err := json.Marshal(change)
	if err == nil {
		_, err = kube.CoreV1().Services(s.Namespace).Patch(t.Context(), s.Name, types.MergePatchType, text, metav1.PatchOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// trickle makes new connections at a steady rate, and counts what fails.
type trickle struct {
	flood
	perSecond int
}

func startTrickle(host, address string, perSecond int) *trickle {
	const workers = 4
	f := &trickle{flood: flood{began: time.Now()}, perSecond: perSecond}
	for range workers {
		f.workers.Go(func() {
			err := lab.Do(host, func() error {
				tick := time.NewTicker(time.Second * workers / time.Duration(perSecond))
				defer tick.Stop()
				for !f.stop.Load() {
					<-tick.C
					if err := greet(address); err != nil {
						f.fail(err)
					}
					f.made.Add(1)
				}
				return nil
			})
			if err != nil {
				f.fail(err)
			}
		})
	}
	return f
}

// chat is many idle connections, on one of which a word is said now and then.
type chat struct {
	talks []talk
	stop  chan struct{}
	ended sync.WaitGroup
	words int
	cut   []error // by those that were cut, which are not asked again
}

func startChat(t *testing.T, address string, n int) *chat {
	t.Helper()
	c := &chat{stop: make(chan struct{})}
	for range n {
		talk := startTalk(t, address)
		talk.say(t, "before")
		c.talks = append(c.talks, talk)
	}
	c.ended.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := 0; len(c.talks) > 0; i++ {
			select {
			case <-c.stop:
				return
			case <-tick.C:
				c.say(i%len(c.talks), fmt.Sprint("word ", i))
			}
		}
	})
	return c
}

func (c *chat) say(i int, word string) {
	c.words++
	if err := c.talks[i].try(word); err != nil {
		c.cut = append(c.cut, err)
		c.talks = slices.Delete(c.talks, i, i+1)
	}
}

func (c talk) try(word string) error {
	if err := c.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c.conn, word); err != nil {
		return err
	}
	got, err := c.read.ReadString('\n')
	if err == nil && got != word+"\n" {
		err = fmt.Errorf("%q was answered %q", word, got)
	}
	return err
}

// finish says a word on every one of them.
func (c *chat) finish(t *testing.T) {
	t.Helper()
	close(c.stop)
	c.ended.Wait()
	for i := len(c.talks) - 1; i >= 0; i-- {
		c.say(i, "the last word")
	}
	if len(c.cut) > 0 {
		t.Errorf("%d idle connections were cut, first: %v", len(c.cut), c.cut[0])
	}
	t.Logf("%d idle connections, %d words", len(c.talks), c.words)
}

// Promise 4: a thousand changes of everything that can change, under downloads,
// idle connections and new ones. Not one is reset, and no byte is wrong.
func TestThousandChangesCutNothing(t *testing.T) {
	const (
		changes   = 1000
		static    = 8300
		viaKube   = 8301
		other     = 8302
		passing   = 8303
		backends  = 7110
		checkEach = 40
	)
	ns := namespace(t)
	restoreConfig(t)
	var patients []*patient
	for i := range 3 {
		patients = append(patients, startPatient(t, fmt.Sprintf("w%d", i+1), fmt.Sprintf("10.0.0.10%d:%d", i+1, backends)))
	}
	same := bare(ns, "same", "TCP", viaKube, backends, nil)
	create(t, same, ready, ready, absent)
	neighbour := bare(ns, "other", "TCP", other, backends, nil)
	create(t, neighbour, ready, absent, absent)
	apply(t, deployment(ns, "web", "web", "", 1, "--linger", "0s")+service(ns, "web", "web", "home", "Local", passing+1))

	// The file, by number: who is behind the static frontend, and one that comes and goes.
	file := func(n int) (text, weights string) {
		var list, out []string
		for i, weight := range [][3]int{{1, 1, 0}, {1, 3, 0}, {1, 0, 2}, {2, 0, 0}, {1, 1, 1}}[n%5] {
			addr := fmt.Sprintf("10.0.0.10%d:%d", i+1, backends)
			// Weight 0 in every other file, not there in the others.
			if weight > 0 || n%2 == 0 {
				list = append(list, fmt.Sprintf("{address: %q, weight: %d}", addr, weight))
			}
			if weight > 0 {
				out = append(out, fmt.Sprintf("%s=%d", addr, weight))
			}
		}
		text = config + fmt.Sprintf("frontends:\n  - {name: static, zones: [home], port: %d, backends: [%s]}\n", static, strings.Join(list, ", "))
		if n%3 == 1 {
			text += fmt.Sprintf("  - {name: static-passing, zones: [home], port: %d, backends: [{address: \"10.0.0.101:%d\"}]}\n", passing, backends)
		}
		return text, strings.Join(out, " ")
	}
	text, staticWeights := file(0)
	if err := writeConfig(text); err != nil {
		t.Fatal(err)
	}
	addresses := []string{fmt.Sprintf("%s:%d", homeAddr, static), fmt.Sprintf("%s:%d", homeAddr, viaKube)}
	for _, address := range addresses {
		eventually(t, 10*time.Second, address+" is open", func() error { return lab.Do("home1", func() error { return greet(address) }) })
	}
	components, err := lab.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, c := range components.Components {
		if c.Name == "gatehouse" {
			pid = c.PID
		}
	}
	logged := func() string {
		data, err := os.ReadFile(lab.LogPath("gatehouse"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	logBefore := len(logged())

	var chats []*chat
	var trickles []*trickle
	downloads := make(chan error, 4)
	for _, address := range addresses {
		chats = append(chats, startChat(t, address, 50))
		for range 2 {
			go func() { downloads <- download(address) }()
		}
		trickles = append(trickles, startTrickle("home1", address, 100))
	}

	// Each change is one of ten kinds; now and then it is waited for.
	second := []condition{ready, notReady, ready, terminating, absent}
	third := []condition{absent, ready, notReady}
	sameWeights := ""
	passingServices := map[string]bool{}
	begun := time.Now()
	pace := time.NewTicker(25 * time.Millisecond)
	defer pace.Stop()
	for n := range changes {
		<-pace.C
		switch round := n / 10; n % 10 {
		case 0, 5:
			text, staticWeights = file(n/5 + 1)
			err = writeConfig(text)
		case 1: // a bad file, for a moment
			err = writeConfig(strings.Replace(text, "eth1", "[", 1))
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGHUP)
			}
			<-pace.C
			if err == nil {
				err = writeConfig(text)
			}
		case 2:
			err = syscall.Kill(pid, syscall.SIGHUP)
		case 3, 8:
			b, c := second[n/5%len(second)], third[n/5%len(third)]
			set(t, same, ready, b, c)
			sameWeights = fmt.Sprintf("10.0.0.101:%d=1", backends)
			if b == ready {
				sameWeights += fmt.Sprintf(" 10.0.0.102:%d=1", backends)
			}
			if c == ready {
				sameWeights += fmt.Sprintf(" 10.0.0.103:%d=1", backends)
			}
		case 4:
			set(t, neighbour, third[round%3], second[round%5], ready)
		case 6:
			annotate(t, same, []map[string]string{
				{"gatehouse.e13.dev/drain-timeout": "1h", "gatehouse.e13.dev/idle-timeout": "1h"},
				{"gatehouse.e13.dev/drain-timeout": "", "gatehouse.e13.dev/health-interval": "1s"},
				{"gatehouse.e13.dev/idle-timeout": "", "gatehouse.e13.dev/health-interval": "", "example.org/unrelated": fmt.Sprint(n)},
			}[round%3])
		case 7:
			ranges := [][]string{nil, {"10.11.12.0/24"}, {"0.0.0.0/0"}}[round%3]
			patch(t, same, map[string]any{"spec": map[string]any{"loadBalancerSourceRanges": ranges}})
		case 9:
			name := fmt.Sprintf("passing-%d", round%4)
			if passingServices[name] {
				err = kube.CoreV1().Services(ns).Delete(t.Context(), name, metav1.DeleteOptions{})
				if err == nil {
					err = kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), name, metav1.DeleteOptions{})
				}
			} else {
				create(t, bare(ns, name, "TCP", passing+2+round%4, backends, nil), ready, ready, ready)
			}
			passingServices[name] = !passingServices[name]
			if round%10 == 0 {
				scale := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, 1+round/10%3)
				_, err2 := kube.AppsV1().Deployments(ns).Patch(t.Context(), "web", types.MergePatchType, scale, metav1.PatchOptions{})
				err = errors.Join(err, err2)
			}
		}
		if err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
		if n%checkEach == checkEach-1 {
			eventually(t, 10*time.Second, fmt.Sprintf("change %d", n), func() error {
				f, _ := openAt(t, static)
				g, _ := openAt(t, viaKube)
				return errors.Join(want(f.weights(), staticWeights), want(g.weights(), sameWeights))
			})
		}
	}
	took := time.Since(begun)

	for i, f := range trickles {
		t.Log(addresses[i])
		f.finish(t)
		chats[i].finish(t)
	}
	for _, p := range patients {
		close(p.stop)
	}
	for range cap(downloads) {
		if err := <-downloads; err != nil {
			t.Errorf("a download: %v", err)
		}
	}
	for _, port := range []int{static, viaKube} {
		f, there := openAt(t, port)
		if !there {
			t.Fatalf("nothing is open at port %d", port)
		}
		delete(f.Ended, "finished")
		for how, n := range f.Ended {
			if n > 0 {
				t.Errorf("port %d: %d connections ended so: %s", port, n, how)
			}
		}
		for why, n := range f.Failures {
			if n > 0 {
				t.Errorf("port %d: %d connections got no backend: %s", port, n, why)
			}
		}
	}
	log := logged()[logBefore:]
	count := func(message string) int { return strings.Count(log, `"msg":"`+message+`"`) }
	read, bad := count("configuration read"), count("configuration is bad, the last good one goes on")
	opened, closed := count("frontend opened"), count("frontend closed")
	t.Logf("%d changes in %.0f s; %d configurations taken, %d refused, %d frontends opened, %d closed; %d times a change was waited for",
		changes, took.Seconds(), read, bad, opened, closed, changes/checkEach)
	// Those that follow each other fast are taken together.
	if read < 60 || bad < 30 || opened < 40 || closed < 40 {
		t.Error("the changes did not take place")
	}
}

// listen takes connections on a host until the test ends.
func listen(t *testing.T, host, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	err := lab.Do(host, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// startSpeaker answers each connection with its own name, and then each word with the word.
func startSpeaker(t *testing.T, worker string, port int) {
	t.Helper()
	listener := listen(t, worker, fmt.Sprintf("10.0.0.10%s:%d", worker[1:], port))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := fmt.Fprintln(conn, worker); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
}

// call is a connection to a speaker.
type call struct {
	talk
	worker string
}

func ring(host, address string) (call, error) {
	var c call
	err := lab.Do(host, func() error {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err == nil {
			c.talk = talk{conn, bufio.NewReader(conn)}
		}
		return err
	})
	if err != nil {
		return c, err
	}
	_ = c.conn.SetDeadline(time.Now().Add(5 * time.Second))
	c.worker, err = c.read.ReadString('\n')
	c.worker = strings.TrimSpace(c.worker)
	return c, err
}

// ringN makes calls, and sorts them by who answers.
func ringN(t *testing.T, host, address string, n int) map[string][]call {
	t.Helper()
	calls := map[string][]call{}
	for range n {
		c, err := ring(host, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.conn.Close() })
		calls[c.worker] = append(calls[c.worker], c)
	}
	return calls
}

func sayAll(t *testing.T, calls []call, when string) {
	t.Helper()
	for _, c := range calls {
		if err := c.try(when); err != nil {
			t.Fatalf("%s, a connection to %s was cut: %v", when, c.worker, err)
		}
	}
}

// A backend that leaves gets no new connection, and keeps those it has until
// the drain timeout is over; the status says how many and until when. Then they
// are reset, and counted. If it comes back before, they stay.
func TestDrainTimeout(t *testing.T) {
	const port, backends, timeout = 8310, 7111, 3 * time.Second
	ns := namespace(t)
	startSpeaker(t, "w1", backends)
	startSpeaker(t, "w2", backends)
	s := bare(ns, "drained", "TCP", port, backends, map[string]string{"gatehouse.e13.dev/drain-timeout": timeout.String()})
	create(t, s, ready, ready)
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 5*time.Second, "both answer", func() error {
		calls := map[string]bool{}
		for range 8 {
			c, err := ring("home1", at)
			if err != nil {
				return err
			}
			c.conn.Close()
			calls[c.worker] = true
		}
		if len(calls) != 2 {
			return fmt.Errorf("only %v", calls)
		}
		return nil
	})
	const leaver = "10.0.0.102:7111"
	calls := ringN(t, "home1", at, 40)
	stay, leave := calls["w1"], calls["w2"]
	if len(stay) == 0 || len(leave) == 0 {
		t.Fatalf("%d calls to w1, %d to w2", len(stay), len(leave))
	}
	gone := func() (since time.Time) {
		t.Helper()
		since = time.Now()
		set(t, s, ready, absent)
		eventually(t, 2*time.Second, "it drains", func() error {
			f, _ := openAt(t, port)
			b, there := f.backend(leaver)
			if !there || !b.Draining || b.Active != uint64(len(leave)) || b.DrainTimeout != "3s" {
				return fmt.Errorf("the status says %+v", b)
			}
			if lasts := b.DrainingUntil.Sub(b.DrainingSince); lasts != timeout || b.DrainingSince.Before(since.Add(-time.Second)) {
				return fmt.Errorf("it drains from %s to %s", b.DrainingSince, b.DrainingUntil)
			}
			return nil
		})
		return since
	}

	gone()
	set(t, s, ready, ready)
	back := time.NewTimer(timeout + time.Second)
	eventually(t, 2*time.Second, "it is back", func() error {
		f, _ := openAt(t, port)
		if b, _ := f.backend(leaver); b.Draining {
			return errors.New("it drains")
		}
		return nil
	})
	<-back.C
	sayAll(t, leave, "after the backend had left and come back")

	since := gone()
	for range 60 {
		c, err := ring("home1", at)
		if err != nil {
			t.Fatal(err)
		}
		c.conn.Close()
		if c.worker != "w1" {
			t.Fatalf("%s after it had left, a new connection went to the backend", time.Since(since))
		}
	}
	if left := timeout - 500*time.Millisecond - time.Since(since); left > 0 {
		<-time.After(left)
		sayAll(t, leave, "half a second before the drain timeout")
	} else {
		t.Logf("the machine is too slow to look before the drain timeout: %s", left)
	}
	for _, c := range leave {
		_ = c.conn.SetReadDeadline(since.Add(timeout + 3*time.Second))
		_, err := c.read.ReadByte()
		if took := time.Since(since); !errors.Is(err, syscall.ECONNRESET) || took < timeout {
			t.Fatalf("%s after the backend had left: %v, want a reset after %s", took, err, timeout)
		}
	}
	t.Logf("%d connections were reset %s after the endpoint was taken away, the drain timeout is %s", len(leave), time.Since(since).Round(time.Millisecond), timeout)
	sayAll(t, stay, "after the drain timeout")
	f, _ := openAt(t, port)
	if n := f.Ended["drain_timeout"]; n != uint64(len(leave)) {
		t.Errorf("%d connections are counted as ended by the drain timeout, want %d", n, len(leave))
	}
	if b, there := f.backend(leaver); there {
		t.Errorf("the backend is still there: %+v", b)
	}
}

// A node whose pods are all terminating gets no new connection through its node
// port, while its pods serve those that they have.
func TestNodeOfTerminatingPodsDrains(t *testing.T) {
	const port = 8311
	ns := namespace(t)
	apply(t, deployment(ns, "one", "web", "w1", 1, "--linger", "8s")+deployment(ns, "two", "web", "w2", 1)+service(ns, "web", "web", "home", "Local", port))
	awaitPods(t, ns, "one", "two")
	eventually(t, 10*time.Second, "both are up", func() error { return allUp(t, ns+"/web", 2) })
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	var old *conversation
	for old == nil { // until one is with the pod that will go
		c := converse(t, "home1", at)
		if c.ask(t); activeOn(t, port, "10.0.0.101:") > 0 {
			old = c
		} else {
			c.conn.Close()
			eventually(t, time.Second, "that one is gone", func() error { return want(fmt.Sprint(activeOn(t, port, "10.0.0.102:")), "0") })
		}
	}
	kubectl(t, "scale", "deployment", "-n", ns, "one", "--replicas", "0")
	eventually(t, 2*time.Second, "the node drains", func() error {
		f, _ := openAt(t, port)
		for _, b := range f.Backends {
			if strings.HasPrefix(b.Addr, "10.0.0.101:") && b.Draining && b.Active == 1 {
				return nil
			}
		}
		return fmt.Errorf("the status says %+v", f.Backends)
	})
	since := time.Now()
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	n := 0
	for ; time.Since(since) < 3*time.Second; n++ {
		<-pace.C
		a, err := get("home1", at, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if a.Node != "w2" {
			t.Fatalf("a new connection went to %s on %s", a.Pod, a.Node)
		}
	}
	if pods := kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={range .items[?(@.spec.nodeName==\"w1\")]}{.metadata.name}{end}"); pods == "" {
		t.Error("the old pod is gone already: nothing was shown")
	}
	old.ask(t)
	t.Logf("%d new connections in 3 s, all to the other node", n)
}

// activeOn is how many connections backends have whose address begins so.
func activeOn(t *testing.T, port int, prefix string) (n uint64) {
	t.Helper()
	f, _ := openAt(t, port)
	for _, b := range f.Backends {
		if strings.HasPrefix(b.Addr, prefix) {
			n += b.Active
		}
	}
	return n
}

// maxConnectionsPerClient: the connections of one client over it are reset, all
// that are there stay, and so does everybody else.
func TestClientLimit(t *testing.T) {
	const port, backends, most, mostOfAll = 8320, 7112, 10, 16
	startSpeaker(t, "w1", backends)
	restoreConfig(t)
	text := config + fmt.Sprintf("frontends:\n  - {name: static, zones: [home], port: %d, maxConnectionsPerClient: %d, maxConnections: %d, backends: [{address: \"10.0.0.101:%d\"}]}\n", port, most, mostOfAll, backends)
	if err := writeConfig(text); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 5*time.Second, "open", func() error {
		c, err := ring("home1", at)
		if err == nil {
			c.conn.Close()
		}
		return err
	})
	settled := func(n int) func() error {
		return func() error {
			f, _ := openAt(t, port)
			return want(fmt.Sprint(f.Active), fmt.Sprint(n))
		}
	}
	eventually(t, time.Second, "nobody is there", settled(0))
	over := func(host string) {
		t.Helper()
		for range 5 {
			if c, err := ring(host, at); err == nil {
				t.Errorf("%s: one connection over the limit was served", host)
				c.conn.Close()
			} else if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: over the limit: %v, want a reset", host, err)
			}
		}
	}
	count := func(reason string, n uint64) {
		t.Helper()
		eventually(t, time.Second, reason+" is counted", func() error {
			f, _ := openAt(t, port)
			return want(fmt.Sprint(f.Failures[reason]), fmt.Sprint(n))
		})
	}
	first := ringN(t, "home1", at, most)["w1"]
	over("home1")
	count("client_limit", 5)
	sayAll(t, first, "beside those over the limit")
	second := ringN(t, "home2", at, mostOfAll-most)["w1"] // somebody else, up to what all may have
	over("home2")
	count("limit", 5)
	sayAll(t, slices.Concat(first, second), "with all that there may be")

	for _, c := range append(first[:3], second[0]) {
		c.conn.Close()
	}
	eventually(t, time.Second, "four are gone", settled(mostOfAll-4))
	sayAll(t, ringN(t, "home1", at, 3)["w1"], "in the room of those that are gone")
	over("home1") // one more could be, of somebody else
	count("client_limit", 10)
}
