package kube

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"e13.dev/gatehouse/internal/edge"
)

// counted is a state that counts how often it told of a change.
func counted() (*state, *int) {
	n := new(int)
	return newState(func() { *n++ }), n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func namedService(namespace, name, version string) *corev1.Service {
	return balancedService(func(s *corev1.Service) {
		s.Namespace, s.Name, s.ResourceVersion = namespace, name, version
		s.UID = types.UID("uid-" + namespace + "-" + name)
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	})
}

func namedNode(name string, addr string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
	}
}

func sliceFor(namespace, name, serviceName string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := sliceOf(name, endpoints...)
	s.Namespace = namespace
	s.Labels[discoveryv1.LabelServiceName] = serviceName
	return s
}

// summary is a snapshot as text a person reads.
func summary(c edge.Cluster) string {
	var b strings.Builder
	for _, s := range c.Services {
		fmt.Fprintf(&b, "%s:", s.Key())
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, " %v", e.Addr)
			if !e.Ready {
				b.WriteString("(not ready)")
			}
		}
		b.WriteString("\n")
	}
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "node %s: %v\n", n.Name, n.Addrs)
	}
	return b.String()
}

func wantSummary(t *testing.T, s *state, want string) edge.Cluster {
	t.Helper()
	got, _ := s.snapshot()
	if summary(got) != want {
		t.Errorf("got:\n%swant:\n%s", summary(got), want)
	}
	return got
}

func TestSnapshotIgnoresOrder(t *testing.T) {
	services := []*corev1.Service{namedService("a", "web", "1"), namedService("a-b", "web", "2"), namedService("a", "api", "3")}
	endpointSlices := []*discoveryv1.EndpointSlice{
		sliceFor("a", "web-1", "web", endpointAt("10.244.1.5"), endpointAt("10.244.1.6", conditions(new(false), nil, nil))),
		sliceFor("a", "web-2", "web", endpointAt("10.244.1.6"), endpointAt("10.244.1.4")),
		sliceFor("a-b", "web-1", "web", endpointAt("10.244.2.1")),
		sliceFor("a", "other-1", "other", endpointAt("10.244.3.1")),
	}
	nodes := []*corev1.Node{namedNode("w2", "10.0.0.102"), namedNode("w1", "10.0.0.101")}
	const want = "a/api:\n" +
		"a/web: 10.244.1.4:8080 10.244.1.5:8080 10.244.1.6:8080\n" +
		"a-b/web: 10.244.2.1:8080\n" +
		"node w1: [10.0.0.101]\nnode w2: [10.0.0.102]\n"
	var first edge.Cluster
	for i := range 50 {
		s, _ := counted()
		var adds []func() error
		for _, o := range services {
			adds = append(adds, func() error { return s.serviceIntake().Add(o) })
		}
		for _, o := range endpointSlices {
			adds = append(adds, func() error { return s.sliceIntake().Add(o) })
		}
		for _, o := range nodes {
			adds = append(adds, func() error { return s.nodeIntake().Add(o) })
		}
		rand.Shuffle(len(adds), func(i, j int) { adds[i], adds[j] = adds[j], adds[i] })
		for _, add := range adds {
			must(t, add())
			if i%2 == 0 {
				s.snapshot() // whether looked at in between or not
			}
		}
		got := wantSummary(t, s, want)
		if i == 0 {
			first = got
		} else if !reflect.DeepEqual(got, first) {
			t.Fatalf("run %d differs: %+v and %+v", i, got, first)
		}
	}
}

func TestSnapshotFollowsChanges(t *testing.T) {
	s, told := counted()
	services, endpointSlices, nodes := s.serviceIntake(), s.sliceIntake(), s.nodeIntake()
	step := func(what string, err error, news bool, want string) {
		t.Helper()
		must(t, err)
		if (*told > 0) != news {
			t.Errorf("%s: told of %d changes, news: %v", what, *told, news)
		}
		*told = 0
		wantSummary(t, s, want)
	}
	step("a slice of a Service that is none", endpointSlices.Add(sliceFor("a", "web-1", "web", endpointAt("10.244.1.5"))), false, "")
	step("its Service", services.Add(namedService("a", "web", "1")), true, "a/web: 10.244.1.5:8080\n")
	step("the same again", services.Update(namedService("a", "web", "1")), false, "a/web: 10.244.1.5:8080\n")
	step("the same slice", endpointSlices.Update(sliceFor("a", "web-1", "web", endpointAt("10.244.1.5"))), false, "a/web: 10.244.1.5:8080\n")
	step("a second slice", endpointSlices.Add(sliceFor("a", "web-2", "web", endpointAt("10.244.1.6"))), true, "a/web: 10.244.1.5:8080 10.244.1.6:8080\n")
	step("a slice of another Service", endpointSlices.Add(sliceFor("a", "db-1", "db", endpointAt("10.244.1.9"))), false, "a/web: 10.244.1.5:8080 10.244.1.6:8080\n")
	step("a slice changes hands", endpointSlices.Update(sliceFor("a", "web-2", "db", endpointAt("10.244.1.6"))), true, "a/web: 10.244.1.5:8080\n")
	step("the first slice goes", endpointSlices.Delete(sliceFor("a", "web-1", "web")), true, "a/web:\n")
	step("the other Service comes", services.Add(namedService("a", "db", "2")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\na/web:\n")
	other := namedService("a", "db", "3")
	other.Spec.Type = corev1.ServiceTypeClusterIP
	step("it is no LoadBalancer any more", services.Update(other), true, "a/web:\n")
	step("nor was it", services.Update(other), false, "a/web:\n")
	step("it is again", services.Update(namedService("a", "db", "4")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\na/web:\n")
	step("a Service goes", services.Delete(namedService("a", "web", "1")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\n")
	step("a node", nodes.Add(namedNode("w1", "10.0.0.101")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\nnode w1: [10.0.0.101]\n")
	beat := namedNode("w1", "10.0.0.101")
	beat.ResourceVersion, beat.Status.Images = "9", []corev1.ContainerImage{{SizeBytes: 1}}
	step("a node reports", nodes.Update(beat), false, "a/db: 10.244.1.6:8080 10.244.1.9:8080\nnode w1: [10.0.0.101]\n")
	step("a node moves", nodes.Update(namedNode("w1", "10.0.0.111")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\nnode w1: [10.0.0.111]\n")
	step("a node goes", nodes.Delete(namedNode("w1", "")), true, "a/db: 10.244.1.6:8080 10.244.1.9:8080\n")
	step("all Services anew, one is gone and one is new", services.Replace([]any{namedService("a", "new", "8")}, ""), true, "a/new:\n")
}

// A snapshot belongs to whoever took it, also while the next one is made.
func TestSnapshotDoesNotChangeAfterwards(t *testing.T) {
	s, _ := counted()
	must(t, s.serviceIntake().Add(namedService("a", "web", "1")))
	must(t, s.sliceIntake().Add(sliceFor("a", "web-1", "web", endpointAt("10.244.1.5"), endpointAt("10.244.1.6"))))
	must(t, s.nodeIntake().Add(namedNode("w1", "10.0.0.101")))
	before, _ := s.snapshot()
	text := fmt.Sprintf("%+v", before)

	must(t, s.sliceIntake().Update(sliceFor("a", "web-1", "web", endpointAt("10.244.1.1"))))
	must(t, s.serviceIntake().Update(namedService("a", "web", "2")))
	must(t, s.nodeIntake().Update(namedNode("w1", "10.0.0.109")))
	after, _ := s.snapshot()
	if got := fmt.Sprintf("%+v", before); got != text {
		t.Errorf("the old snapshot became %s", got)
	}
	if reflect.DeepEqual(before, after) {
		t.Error("the new snapshot is the old one")
	}
}

func TestSyncedOnceAllHasBeenRead(t *testing.T) {
	s, told := counted()
	for i, intake := range []cache.ReflectorStore{s.serviceIntake(), s.sliceIntake(), s.nodeIntake()} {
		if _, synced := s.snapshot(); synced {
			t.Fatalf("synced after %d of 3", i)
		}
		*told = 0
		must(t, intake.Replace(nil, "1"))
		if *told == 0 {
			t.Errorf("reading an empty list was not told of")
		}
	}
	if _, synced := s.snapshot(); !synced {
		t.Error("not synced after all three")
	}
}

// What was missing in a list was not seen to be deleted: who decides has to know.
func TestListsAreCounted(t *testing.T) {
	s, told := counted()
	for i, intake := range []cache.ReflectorStore{s.serviceIntake(), s.sliceIntake(), s.nodeIntake(), s.serviceIntake(), s.nodeIntake()} {
		*told = 0
		must(t, intake.Replace(nil, "1"))
		if c, _ := s.snapshot(); c.Lists != i+1 || *told == 0 {
			t.Errorf("%d lists after %d, told %d times", c.Lists, i+1, *told)
		}
	}
	must(t, s.nodeIntake().Add(namedNode("w1", "10.0.0.101")))
	must(t, s.nodeIntake().Delete(namedNode("w1", "")))
	if c, _ := s.snapshot(); c.Lists != 5 {
		t.Errorf("%d lists", c.Lists)
	}
}

func TestAPIServersFollowTheirSlices(t *testing.T) {
	s, told := counted()
	slice := func(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		e := sliceFor("default", "kubernetes", "kubernetes", endpoints...)
		e.Ports[0].Name, e.Ports[0].Port = new("https"), new(int32(6443))
		return e
	}
	step := func(want string, endpoints ...discoveryv1.Endpoint) {
		t.Helper()
		*told = 0
		must(t, s.sliceIntake().Update(slice(endpoints...)))
		if c, _ := s.snapshot(); fmt.Sprint(c.APIServers) != want || *told != 1 {
			t.Errorf("%v, told %d times", c.APIServers, *told)
		}
	}
	step("[10.0.0.11:6443]", endpointAt("10.0.0.11"))
	step("[10.0.0.11:6443 10.0.0.12:6443]", endpointAt("10.0.0.12"), endpointAt("10.0.0.11"))
	must(t, s.nodeIntake().Add(namedNode("w1", "10.0.0.101")))
	if c, _ := s.snapshot(); len(c.APIServers) != 2 {
		t.Errorf("%v, after something else has changed", c.APIServers)
	}
	step("[]")
}

func TestNamespacesAreReadIfSomebodyAsks(t *testing.T) {
	named := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	none, _ := counted()
	for _, intake := range []cache.ReflectorStore{none.serviceIntake(), none.sliceIntake(), none.nodeIntake()} {
		must(t, intake.Replace(nil, "1"))
	}
	if c, synced := none.snapshot(); c.Namespaces != nil || !synced {
		t.Errorf("nobody has asked: %v, synced %t", c.Namespaces, synced)
	}
	s, told := counted()
	s.withNamespaces(true)
	for _, intake := range []cache.ReflectorStore{s.serviceIntake(), s.sliceIntake(), s.nodeIntake()} {
		must(t, intake.Replace(nil, "1"))
	}
	if _, synced := s.snapshot(); synced {
		t.Error("synced without them")
	}
	must(t, s.namespaceIntake().Replace([]any{named("shop", map[string]string{"tier": "gold"}), named("old", nil)}, "1"))
	before, synced := s.snapshot()
	if got := fmt.Sprint(before.Namespaces); got != "map[old:map[] shop:map[tier:gold]]" || !synced {
		t.Errorf("%s, synced %t", got, synced)
	}
	must(t, s.namespaceIntake().Update(named("shop", map[string]string{"tier": "lead"})))
	*told = 0
	must(t, s.namespaceIntake().Update(named("shop", map[string]string{"tier": "lead"})))
	if *told != 0 {
		t.Error("told of a namespace that is as it was")
	}
	must(t, s.namespaceIntake().Delete(named("old", nil)))
	must(t, s.namespaceIntake().Add(named("new", nil)))
	if c, _ := s.snapshot(); fmt.Sprint(c.Namespaces) != "map[new:map[] shop:map[tier:lead]]" || *told == 0 {
		t.Errorf("%v, told %d times", c.Namespaces, *told)
	}
	if got := fmt.Sprint(before.Namespaces); got != "map[old:map[] shop:map[tier:gold]]" {
		t.Errorf("the old snapshot became %s", got)
	}
}

// The reflector stores what the transformer returned, and adds it again.
func TestTransformedObjectsAreAccepted(t *testing.T) {
	s, _ := counted()
	for _, tt := range []struct {
		intake cache.ReflectorStore
		obj    any
		key    string
	}{
		{s.serviceIntake(), namedService("a", "web", "1"), "a/web"},
		{s.sliceIntake(), sliceFor("a", "web-1", "web", endpointAt("10.244.1.5")), "a/web-1"},
		{s.nodeIntake(), namedNode("w1", "10.0.0.101"), "w1"},
	} {
		v, err := tt.intake.(cache.TransformingStore).Transformer()(tt.obj)
		must(t, err)
		key, err := cache.MetaNamespaceKeyFunc(v)
		if err != nil || key != tt.key {
			t.Errorf("key %q of %T, %v", key, v, err)
		}
		must(t, tt.intake.Replace([]any{v}, "1"))
		if err := tt.intake.Add(&corev1.Pod{}); err == nil || err.Error() != "kube: unexpected *v1.Pod in a watch" {
			t.Errorf("a Pod: %v", err)
		}
	}
	wantSummary(t, s, "a/web: 10.244.1.5:8080\nnode w1: [10.0.0.101]\n")
}

// filled is a cluster of n Services with ten endpoints each.
func filled(t testing.TB, n int) *state {
	s, _ := counted()
	services, endpointSlices := s.serviceIntake(), s.sliceIntake()
	for i := range n {
		name := fmt.Sprintf("web-%d", i)
		must(t, services.Add(namedService("shop", name, "1")))
		must(t, endpointSlices.Add(sliceFor("shop", name+"-x", name, tenEndpoints(i)...)))
	}
	return s
}

func tenEndpoints(i int) []discoveryv1.Endpoint {
	var all []discoveryv1.Endpoint
	for j := range 10 {
		addr := netip.AddrFrom4([4]byte{10, 244, byte(i % 250), byte(1 + j)})
		all = append(all, endpointAt(addr.String(), func(e *discoveryv1.Endpoint) {
			e.NodeName = new(fmt.Sprintf("w%d", j))
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprintf("web-%d-%d", i, j)}
		}))
	}
	return all
}

func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("services=%d/endpoints=%d/changed=1", n, 10*n), func(b *testing.B) {
			s := filled(b, n)
			endpointSlices := s.sliceIntake()
			all := tenEndpoints(3)
			versions := [2]*discoveryv1.EndpointSlice{
				sliceFor("shop", "web-3-x", "web-3", all...),
				sliceFor("shop", "web-3-x", "web-3", all[:9]...),
			}
			s.snapshot()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				must(b, endpointSlices.Update(versions[i%2]))
				if c, _ := s.snapshot(); len(c.Services) != n {
					b.Fatal("services lost")
				}
			}
		})
	}
}

func TestSnapshotOfALargeClusterIsSorted(t *testing.T) {
	c, _ := filled(t, 300).snapshot()
	if len(c.Services) != 300 || !slices.IsSortedFunc(c.Services, func(a, b edge.Service) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%d Services, or not sorted", len(c.Services))
	}
}
