package kube

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

// state is what is known of the cluster. Reflectors write straight into it,
// already converted, so nothing is held twice; snapshot puts it together.
type state struct {
	changed func() // called without the lock after something in a snapshot changed
	// released is called without the lock after a Service left that has
	// gatehouse's finalizer, or all Services were read anew; nil: nobody asks.
	released func()

	mu       sync.Mutex
	services map[string]edge.Service               // type LoadBalancer only, without Endpoints
	slices   map[string]map[string][]edge.Endpoint // of every Service: each may become a LoadBalancer
	owners   map[string]string                     // slice -> Service
	nodes    map[string]edge.Node
	// namespaces are the labels of each; nil: they are not read. It is replaced,
	// not changed, since snapshots have it.
	namespaces    map[string]map[string]string
	ownNamespaces bool // no snapshot has them
	synced        struct{ services, slices, nodes, namespaces bool }
	lists         int // see edge.Cluster
	// routes are Ingresses, Gateways and routes by resource and key; nil: they are
	// not read. asked are the resources of which it is known whether they can be.
	routes map[string]map[string]*route
	asked  map[string]bool

	// left are Services that had gatehouse's finalizer when they were last seen,
	// and are of another type since, or gone: their UIDs, by when that was. done are the UIDs of
	// those that have been rid of it meanwhile, whose end the watch still has to
	// tell.
	left         map[string]leaver
	done         map[string]struct{}
	serviceLists int // how often all Services were read
	// turns counts what is not to be written after before it was decided upon:
	// Services that leave with the finalizer, and lists.
	turns    int
	listTurn int // the last list's

	// What the last snapshot was made of, and which of it is out of date.
	stale      bool
	staleNodes bool
	staleAPI   bool
	staleHosts bool
	staleKeys  map[string]struct{}
	whole      map[string]*edge.Service // with Endpoints
	order      []*edge.Service          // those of whole, in order; nil: to be made
	last       edge.Cluster
}

// leaver is a Service that has left.
type leaver struct {
	uid  string
	turn int // of state.turns, with it
}

func newState(changed func()) *state {
	return &state{
		changed:   changed,
		services:  make(map[string]edge.Service),
		slices:    make(map[string]map[string][]edge.Endpoint),
		owners:    make(map[string]string),
		nodes:     make(map[string]edge.Node),
		left:      make(map[string]leaver),
		done:      make(map[string]struct{}),
		staleKeys: make(map[string]struct{}),
		whole:     make(map[string]*edge.Service),
	}
}

// apiServersKey is the Service whose endpoints the API servers write themselves.
const apiServersKey = metav1.NamespaceDefault + "/kubernetes"

// withNamespaces makes namespaces part of the snapshot. It is for before the
// first is read.
func (s *state) withNamespaces(read bool) {
	if read {
		s.namespaces = make(map[string]map[string]string)
	}
}

// snapshot returns the whole cluster, and whether all of it has been read at
// least once. What it returns is never changed afterwards. A call with nothing
// new is free; otherwise only changed Services are put together again.
func (s *state) snapshot() (edge.Cluster, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	synced := s.synced.services && s.synced.slices && s.synced.nodes && (s.synced.namespaces || s.namespaces == nil) && s.routesReadLocked()
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
	s.staleHosts = s.routes != nil && (s.staleHosts || len(s.staleKeys) > 0) // they follow from the status of Services, too
	clear(s.staleKeys)
	if s.order == nil {
		s.orderLocked()
	}
	out := edge.Cluster{
		Services: make([]edge.Service, 0, len(s.order)), Nodes: s.last.Nodes,
		APIServers: s.last.APIServers, Namespaces: s.namespaces, Hosts: s.last.Hosts, Lists: s.lists,
	}
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
	if s.staleAPI {
		var all []edge.Endpoint
		for _, part := range s.slices[apiServersKey] {
			all = append(all, part...)
		}
		out.APIServers = apiServersOf(mergeEndpoints(all))
	}
	if s.staleHosts {
		out.Hosts = hostsOf(s.routes, out.Services)
	}
	s.ownNamespaces = false
	s.stale, s.staleNodes, s.staleAPI, s.staleHosts, s.last = false, false, false, false, out
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
	delete(s.left, key) // it is back, or another of its name
	if !v.Finalizer {
		delete(s.done, v.UID)
	}
	s.touchLocked(key)
}

func (s *state) dropServiceLocked(key string) {
	old, ok := s.services[key]
	if !ok {
		return
	}
	delete(s.services, key)
	s.touchLocked(key)
	if _, done := s.done[old.UID]; done {
		delete(s.done, old.UID)
	} else if old.Finalizer {
		s.turns++
		s.left[key] = leaver{old.UID, s.turns}
	}
}

// finalizerGone notes that a Service is about to be rid of its finalizer, so
// that it is not looked for when the watch tells that it is gone; finalizerKept
// that this went wrong.
func (s *state) finalizerGone(key, uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc, ok := s.services[key]; ok && svc.UID == uid {
		s.done[uid] = struct{}{}
	}
}

func (s *state) finalizerKept(uid string) {
	s.mu.Lock()
	delete(s.done, uid)
	s.mu.Unlock()
}

// takeLeft returns the UIDs of Services that have left with gatehouse's finalizer
// since the last call, as of a turn, and how often all Services were read.
func (s *state) takeLeft(turn int) (left map[string]string, lists int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, l := range s.left {
		if l.turn > turn {
			continue
		}
		if left == nil {
			left = make(map[string]string)
		}
		left[key] = l.uid
		delete(s.left, key)
	}
	return left, s.serviceLists
}

// turn says how far the cluster is: see turns; and which of them was the last
// list.
func (s *state) turn() (now, list int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turns, s.listTurn
}

// isBalanced says whether a Service is known to be of type LoadBalancer.
func (s *state) isBalanced(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.services[key]
	return ok
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
	if serviceKey == apiServersKey {
		s.stale, s.staleAPI = true, true
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

func (s *state) putNamespaceLocked(v *namespace) {
	if old, ok := s.namespaces[v.name]; ok && maps.Equal(old, v.labels) {
		return
	}
	s.editNamespacesLocked(func() { s.namespaces[v.name] = v.labels })
}

func (s *state) dropNamespaceLocked(name string) {
	if _, ok := s.namespaces[name]; ok {
		s.editNamespacesLocked(func() { delete(s.namespaces, name) })
	}
}

// editNamespacesLocked changes them. The first change after a snapshot, which
// has them as they were, makes a copy.
func (s *state) editNamespacesLocked(edit func()) {
	if !s.ownNamespaces {
		s.namespaces, s.ownNamespaces = maps.Clone(s.namespaces), true
	}
	edit()
	s.stale = true
}
