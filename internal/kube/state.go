package kube

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"e13.dev/gatehouse/internal/edge"
)

// state is what is known of the cluster. Reflectors write straight into it,
// already converted, so nothing is held twice; snapshot puts it together.
type state struct {
	changed func() // called without the lock after something in a snapshot changed

	mu       sync.Mutex
	services map[string]edge.Service               // type LoadBalancer only, without Endpoints
	slices   map[string]map[string][]edge.Endpoint // of every Service: each may become a LoadBalancer
	owners   map[string]string                     // slice -> Service
	nodes    map[string]edge.Node
	synced   struct{ services, slices, nodes bool }

	// What the last snapshot was made of, and which of it is out of date.
	stale      bool
	staleNodes bool
	staleKeys  map[string]struct{}
	whole      map[string]*edge.Service // with Endpoints
	order      []*edge.Service          // those of whole, in order; nil: to be made
	last       edge.Cluster
}

func newState(changed func()) *state {
	return &state{
		changed:   changed,
		services:  make(map[string]edge.Service),
		slices:    make(map[string]map[string][]edge.Endpoint),
		owners:    make(map[string]string),
		nodes:     make(map[string]edge.Node),
		staleKeys: make(map[string]struct{}),
		whole:     make(map[string]*edge.Service),
	}
}

// snapshot returns the whole cluster, and whether all of it has been read at
// least once. What it returns is never changed afterwards. A call with nothing
// new is free; otherwise only changed Services are put together again.
func (s *state) snapshot() (edge.Cluster, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	synced := s.synced.services && s.synced.slices && s.synced.nodes
	if !s.stale {
		return s.last, synced
	}
	for key := range s.staleKeys {
		svc, ok := s.services[key]
		if !ok {
			delete(s.whole, key)
			s.order = nil
			continue
		}
		var all []edge.Endpoint
		for _, part := range s.slices[key] {
			all = append(all, part...)
		}
		svc.Endpoints = mergeEndpoints(all)
		if whole := s.whole[key]; whole != nil {
			*whole = svc
			continue
		}
		s.whole[key] = &svc
		s.order = nil
	}
	clear(s.staleKeys)
	if s.order == nil {
		s.orderLocked()
	}
	out := edge.Cluster{Services: make([]edge.Service, 0, len(s.order)), Nodes: s.last.Nodes}
	for _, svc := range s.order {
		out.Services = append(out.Services, *svc)
	}
	if s.staleNodes {
		out.Nodes = make([]edge.Node, 0, len(s.nodes))
		for _, n := range s.nodes {
			out.Nodes = append(out.Nodes, n)
		}
		slices.SortFunc(out.Nodes, func(a, b edge.Node) int { return cmp.Compare(a.Name, b.Name) })
	}
	s.stale, s.staleNodes, s.last = false, false, out
	return out, synced
}

// orderLocked sorts by namespace, then name; sorting keys would put "a-b/c"
// before "a/b".
func (s *state) orderLocked() {
	s.order = slices.SortedFunc(maps.Values(s.whole), func(a, b *edge.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func (s *state) touchLocked(key string) {
	s.staleKeys[key] = struct{}{}
	s.stale = true
}

func (s *state) putServiceLocked(v *service) {
	key := v.Key()
	if !v.balanced {
		s.dropServiceLocked(key)
		return
	}
	if old, ok := s.services[key]; ok && old.UID == v.UID && old.ResourceVersion == v.ResourceVersion {
		return // seen again after a reconnect
	}
	s.services[key] = v.Service
	s.touchLocked(key)
}

func (s *state) dropServiceLocked(key string) {
	if _, ok := s.services[key]; ok {
		delete(s.services, key)
		s.touchLocked(key)
	}
}

func (s *state) putSliceLocked(v *slice) {
	key := v.namespace + "/" + v.name
	if owner := s.owners[key]; owner != v.service {
		s.dropSliceLocked(key)
	}
	if v.service == "" {
		return
	}
	parts := s.slices[v.service]
	if parts == nil {
		parts = make(map[string][]edge.Endpoint)
		s.slices[v.service] = parts
	}
	old, had := parts[key]
	parts[key], s.owners[key] = v.endpoints, v.service
	if !had || !slices.Equal(old, v.endpoints) {
		s.endpointsChangedLocked(v.service)
	}
}

func (s *state) dropSliceLocked(key string) {
	owner, ok := s.owners[key]
	if !ok {
		return
	}
	delete(s.owners, key)
	delete(s.slices[owner], key)
	if len(s.slices[owner]) == 0 {
		delete(s.slices, owner)
	}
	s.endpointsChangedLocked(owner)
}

// endpointsChangedLocked is silent about Services that are not in the snapshot.
func (s *state) endpointsChangedLocked(serviceKey string) {
	if _, ok := s.services[serviceKey]; ok {
		s.touchLocked(serviceKey)
	}
}

func (s *state) putNodeLocked(v *node) {
	if old, ok := s.nodes[v.Name]; ok && reflect.DeepEqual(old, v.Node) {
		return // nodes report images, conditions and the like all the time
	}
	s.nodes[v.Name] = v.Node
	s.stale, s.staleNodes = true, true
}

func (s *state) dropNodeLocked(name string) {
	if _, ok := s.nodes[name]; ok {
		delete(s.nodes, name)
		s.stale, s.staleNodes = true, true
	}
}

// intake lets a reflector write objects of one kind into the state: A is the
// API's type, V what is kept of it.
type intake[A any, V metav1.ObjectMetaAccessor] struct {
	state   *state
	synced  *bool
	convert func(A) V
	put     func(V)
	drop    func(key string)
	keys    func() []string
}

func (s *state) serviceIntake() cache.ReflectorStore {
	return &intake[*corev1.Service, *service]{
		state: s, synced: &s.synced.services, convert: convertService,
		put: s.putServiceLocked, drop: s.dropServiceLocked, keys: func() []string { return slices.Collect(maps.Keys(s.services)) },
	}
}

func (s *state) sliceIntake() cache.ReflectorStore {
	return &intake[*discoveryv1.EndpointSlice, *slice]{
		state: s, synced: &s.synced.slices, convert: convertSlice,
		put: s.putSliceLocked, drop: s.dropSliceLocked, keys: func() []string { return slices.Collect(maps.Keys(s.owners)) },
	}
}

func (s *state) nodeIntake() cache.ReflectorStore {
	return &intake[*corev1.Node, *node]{
		state: s, synced: &s.synced.nodes, convert: convertNode,
		put: s.putNodeLocked, drop: s.dropNodeLocked, keys: func() []string { return slices.Collect(maps.Keys(s.nodes)) },
	}
}

// Transformer makes the reflector convert objects as they stream in, so that
// a first list never is in memory in the API's types.
func (in *intake[A, V]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return in.kept(obj) }
}

func (in *intake[A, V]) kept(obj any) (V, error) {
	switch obj := obj.(type) {
	case V:
		return obj, nil
	case A:
		return in.convert(obj), nil
	default:
		var none V
		return none, fmt.Errorf("kube: unexpected %T in a watch", obj)
	}
}

// Add and Update store one object.
func (in *intake[A, V]) Add(obj any) error {
	v, err := in.kept(obj)
	if err != nil {
		return err
	}
	in.change(func() { in.put(v) })
	return nil
}

// Update is Add.
func (in *intake[A, V]) Update(obj any) error { return in.Add(obj) }

// Delete forgets one object.
func (in *intake[A, V]) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	in.change(func() { in.drop(key) })
	return nil
}

// Replace makes list all there is.
func (in *intake[A, V]) Replace(list []any, _ string) error {
	values := make(map[string]V, len(list))
	for _, obj := range list {
		v, err := in.kept(obj)
		if err != nil {
			return err
		}
		key, err := cache.MetaNamespaceKeyFunc(v)
		if err != nil {
			return err
		}
		values[key] = v
	}
	in.change(func() {
		for _, key := range in.keys() {
			if _, ok := values[key]; !ok {
				in.drop(key)
			}
		}
		for _, v := range values {
			in.put(v)
		}
		if !*in.synced {
			*in.synced = true
			in.state.stale = true // an empty cluster is news as well
		}
	})
	return nil
}

// Resync has nothing to do: it serves event handlers, and there are none.
func (in *intake[A, V]) Resync() error { return nil }

// change runs f with the lock held and tells of the change if there is one.
func (in *intake[A, V]) change(f func()) {
	in.state.mu.Lock()
	before := in.state.stale
	in.state.stale = false
	f()
	news := in.state.stale
	in.state.stale = before || news
	in.state.mu.Unlock()
	if news {
		in.state.changed()
	}
}
