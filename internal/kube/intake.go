package kube

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// intake lets a reflector write objects of one kind into the state: A is the
// API's type, V what is kept of it.
type intake[A any, V metav1.ObjectMetaAccessor] struct {
	state   *state
	synced  *bool
	convert func(A) V
	put     func(V)
	drop    func(key string)
	keys    func() []string
	listed  func() // all of it was read; with the lock
}

func (s *state) serviceIntake() cache.ReflectorStore {
	return &intake[*corev1.Service, *service]{
		state: s, synced: &s.synced.services, convert: convertService,
		put: s.putServiceLocked, drop: s.dropServiceLocked, keys: func() []string { return slices.Collect(maps.Keys(s.services)) },
		listed: func() { s.listedLocked(); s.serviceLists++ },
	}
}

// listedLocked notes that a kind of which a loss would matter was read anew.
func (s *state) listedLocked() {
	s.lists++
	s.turns++
	s.listTurn = s.turns
}

func (s *state) sliceIntake() cache.ReflectorStore {
	return &intake[*discoveryv1.EndpointSlice, *slice]{
		state: s, synced: &s.synced.slices, convert: convertSlice,
		put: s.putSliceLocked, drop: s.dropSliceLocked, keys: func() []string { return slices.Collect(maps.Keys(s.owners)) },
		listed: s.listedLocked,
	}
}

func (s *state) nodeIntake() cache.ReflectorStore {
	return &intake[*corev1.Node, *node]{
		state: s, synced: &s.synced.nodes, convert: convertNode,
		put: s.putNodeLocked, drop: s.dropNodeLocked, keys: func() []string { return slices.Collect(maps.Keys(s.nodes)) },
		listed: s.listedLocked,
	}
}

func (s *state) namespaceIntake() cache.ReflectorStore {
	return &intake[*corev1.Namespace, *namespace]{
		state: s, synced: &s.synced.namespaces, convert: convertNamespace,
		put: s.putNamespaceLocked, drop: s.dropNamespaceLocked, keys: func() []string { return slices.Collect(maps.Keys(s.namespaces)) },
		listed: func() {},
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
		*in.synced = true
		in.listed()
		in.state.stale = true // that all was read is news as well
	})
	return nil
}

// Resync has nothing to do: it serves event handlers, and there are none.
func (in *intake[A, V]) Resync() error { return nil }

// change runs f with the lock held and tells of the change if there is one.
func (in *intake[A, V]) change(f func()) {
	in.state.mu.Lock()
	before, listsBefore := in.state.stale, in.state.serviceLists
	in.state.stale = false
	f()
	news := in.state.stale
	in.state.stale = before || news
	lists, left := in.state.serviceLists, len(in.state.left)
	in.state.mu.Unlock()
	if news {
		in.state.changed()
	}
	if in.state.released != nil && (left > 0 || lists != listsBefore) {
		in.state.released()
	}
}
