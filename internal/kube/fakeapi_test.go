package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"e13.dev/gatehouse/internal/edge"
)

// fakeAPI keeps Services as an API server does, as far as writing to them goes.
// Who watches is told at once, unless the watch is held up.
type fakeAPI struct {
	t      *testing.T
	client *Client
	watch  cache.ReflectorStore

	mu       sync.Mutex
	version  int
	services map[string]*corev1.Service
	log      []string // "PATCH shop/web {…}"
	held     []func() // what the watch has still to tell
	hold     bool
	refuse   func(r *http.Request) http.HandlerFunc // nil, or what answers instead
	want     []edge.ServiceStatus                   // what is decided of any snapshot
	decided  bool
}

// apply decides this from now on.
func (a *fakeAPI) apply(want ...edge.ServiceStatus) {
	a.mu.Lock()
	a.want, a.decided = want, true
	a.mu.Unlock()
	a.client.Snapshot()
	a.client.Apply(want)
}

// decide is what a daemon does with each change.
func (a *fakeAPI) decide(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.client.Changed():
		}
		a.mu.Lock()
		want, decided := a.want, a.decided
		a.mu.Unlock()
		if _, synced := a.client.Snapshot(); synced && decided {
			a.client.Apply(want)
		}
	}
}

// newFakeAPI returns one and a client that knows no other, without a network.
func newFakeAPI(t *testing.T) (*fakeAPI, *Client) {
	t.Helper()
	c := client(t, "http://api.invalid")
	api := &fakeAPI{t: t, client: c, watch: c.state.serviceIntake(), version: 100, services: make(map[string]*corev1.Service)}
	src := c.conn.Load().source
	src.config = rest.CopyConfig(src.config)
	src.config.Transport = api
	conn, err := src.connect("test", c.requests)
	must(t, err)
	c.conn.Store(conn)
	return api, c
}

// begin makes the client believe that all has been read.
func (a *fakeAPI) begin() {
	a.t.Helper()
	a.relist()
	must(a.t, a.client.state.sliceIntake().Replace(nil, "1"))
	must(a.t, a.client.state.nodeIntake().Replace(nil, "1"))
}

// relist is what a reflector does that has lost its watch.
func (a *fakeAPI) relist() {
	a.t.Helper()
	a.mu.Lock()
	var all []any
	for _, s := range a.services {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			all = append(all, s.DeepCopy())
		}
	}
	a.mu.Unlock()
	must(a.t, a.watch.Replace(all, "1"))
}

// put creates or changes a Service, as somebody else.
func (a *fakeAPI) put(edit func(*corev1.Service), namespace, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := namespace + "/" + name
	before := a.services[key]
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("u-" + name)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	if before != nil {
		s = before.DeepCopy()
	}
	edit(s)
	a.storeLocked(s)
}

func (a *fakeAPI) storeLocked(s *corev1.Service) {
	key := s.Namespace + "/" + s.Name
	before := a.services[key]
	a.version++
	s.ResourceVersion = strconv.Itoa(a.version)
	wasWatched := before != nil && before.Spec.Type == corev1.ServiceTypeLoadBalancer
	watched := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	if s.DeletionTimestamp != nil && len(s.Finalizers) == 0 {
		delete(a.services, key)
		watched = false
	} else {
		a.services[key] = s
	}
	seen := s.DeepCopy()
	switch {
	case watched:
		a.tellLocked(func() { must(a.t, a.watch.Update(seen)) })
	case wasWatched:
		a.tellLocked(func() { must(a.t, a.watch.Delete(seen)) })
	}
}

func (a *fakeAPI) tellLocked(f func()) {
	if a.held = append(a.held, f); !a.hold {
		a.catchUpLocked()
	}
}

func (a *fakeAPI) catchUpLocked() {
	held := a.held
	a.held = nil
	for _, f := range held {
		f()
	}
}

// delay holds up what the watch tells, or lets it go on.
func (a *fakeAPI) delay(hold bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hold = hold; !hold {
		a.catchUpLocked()
	}
}

func (a *fakeAPI) get(key string) corev1.Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.services[key]; s != nil {
		return *s.DeepCopy()
	}
	return corev1.Service{}
}

// requests returns those since the last call.
func (a *fakeAPI) requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	log := a.log
	a.log = nil
	return log
}

// count says how many there were since the last call that begin so.
func (a *fakeAPI) count(prefix string) (n int) {
	for _, r := range a.requests() {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (a *fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	a.serve(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

func (a *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	kind := requestOf(r)
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/"), "/")
	key := ""
	if kind.Verb != "list" && len(parts) > 2 {
		key = parts[0] + "/" + parts[2]
	}
	a.log = append(a.log, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", kind.Verb, kind.Resource, key, body)))
	if a.refuse != nil {
		if answer := a.refuse(r); answer != nil {
			answer(w, r)
			return
		}
	}
	switch {
	case kind.Resource == "events":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"kind":"Event","apiVersion":"v1"}`)
	case kind.Verb == "list":
		a.listLocked(w, r)
	case a.services[key] == nil:
		status(404, metav1.StatusReasonNotFound, "services "+key+" not found")(w, r)
	case kind.Verb == "get":
		a.answer(w, r, a.services[key])
	default:
		a.patchLocked(w, r, key, body)
	}
}

func (a *fakeAPI) listLocked(w http.ResponseWriter, r *http.Request) {
	var keys []string
	for key := range a.services {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	to := min(from+max(limit, 1), len(keys))
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}
	if to < len(keys) {
		meta.Continue = strconv.Itoa(to)
	}
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") {
		list := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: "meta.k8s.io/v1"}, ListMeta: meta}
		for _, key := range keys[from:to] {
			list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: a.services[key].ObjectMeta})
		}
		_ = json.NewEncoder(w).Encode(list)
		return
	}
	list := corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: meta}
	for _, key := range keys[from:to] {
		list.Items = append(list.Items, *a.services[key])
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (a *fakeAPI) answer(w http.ResponseWriter, r *http.Request, s *corev1.Service) {
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata;") {
		_ = json.NewEncoder(w).Encode(metav1.PartialObjectMetadata{
			TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"}, ObjectMeta: s.ObjectMeta,
		})
		return
	}
	out := s.DeepCopy()
	out.TypeMeta = metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}
	_ = json.NewEncoder(w).Encode(out)
}

func (a *fakeAPI) patchLocked(w http.ResponseWriter, r *http.Request, key string, body []byte) {
	before := a.services[key]
	if r.Header.Get("Content-Type") != string(types.StrategicMergePatchType) || !strings.HasSuffix(r.URL.Path, "/status") {
		a.t.Errorf("%s of %s", r.Header.Get("Content-Type"), r.URL.Path)
	}
	var asked struct {
		Metadata struct{ UID, ResourceVersion string }
	}
	must(a.t, json.Unmarshal(body, &asked))
	if uid := asked.Metadata.UID; uid != string(before.UID) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(422)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: 422, Reason: metav1.StatusReasonInvalid,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "FieldValueInvalid", Field: "metadata.uid"}}},
		})
		return
	}
	if v := asked.Metadata.ResourceVersion; v != "" && v != before.ResourceVersion {
		status(409, metav1.StatusReasonConflict, "the object has been modified")(w, r)
		return
	}
	after := merged(a.t, before, body)
	if equality(before) == equality(after) {
		a.answer(w, r, before)
		return
	}
	if fmt.Sprint(after.Status.LoadBalancer) != fmt.Sprint(before.Status.LoadBalancer) {
		ownedBy(after, r.URL.Query().Get("fieldManager"))
	}
	a.storeLocked(after)
	a.answer(w, r, after)
}

func equality(s *corev1.Service) string {
	text, _ := json.Marshal(s)
	return string(text)
}

// merged is what a strategic merge patch of services/status makes of a Service,
// of the fields that gatehouse writes. (The package that does it in an API
// server needs more modules than all the rest.)
func merged(t *testing.T, s *corev1.Service, body []byte) *corev1.Service {
	var patch struct {
		Metadata struct {
			UID, ResourceVersion string
			Finalizers           []string
			Released             []string `json:"$deleteFromPrimitiveList/finalizers"`
		}
		Status struct {
			LoadBalancer *corev1.LoadBalancerStatus
			Conditions   []json.RawMessage
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	must(t, d.Decode(&patch))
	out := s.DeepCopy()
	for _, f := range patch.Metadata.Finalizers {
		if !slices.Contains(out.Finalizers, f) {
			out.Finalizers = append(out.Finalizers, f)
		}
	}
	out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return slices.Contains(patch.Metadata.Released, f) })
	if patch.Status.LoadBalancer != nil {
		out.Status.LoadBalancer = *patch.Status.LoadBalancer
	}
	for _, text := range patch.Status.Conditions {
		var c struct {
			Type  string
			Patch string `json:"$patch"`
		}
		must(t, json.Unmarshal(text, &c))
		i := slices.IndexFunc(out.Status.Conditions, func(have metav1.Condition) bool { return have.Type == c.Type })
		switch {
		case c.Patch == "delete" && i >= 0:
			out.Status.Conditions = slices.Delete(out.Status.Conditions, i, i+1)
		case c.Patch == "delete":
		case i >= 0:
			must(t, json.Unmarshal(text, &out.Status.Conditions[i]))
		default:
			out.Status.Conditions = append(out.Status.Conditions, metav1.Condition{})
			must(t, json.Unmarshal(text, &out.Status.Conditions[len(out.Status.Conditions)-1]))
		}
	}
	return out
}

// ownedBy notes who has written the addresses.
func ownedBy(s *corev1.Service, manager string) {
	s.ManagedFields = nil
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: manager, FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`)}}
	}
}
