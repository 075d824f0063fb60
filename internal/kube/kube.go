// Package kube speaks with the Kubernetes API, and is the only one that does.
// It owns the watch of Services, EndpointSlices and Nodes, which it hands out
// as whole snapshots of edge types, the status of Services, and Events. What a
// Service means, and what its status ought to be, is decided elsewhere.
//
//	c, err := kube.New(kube.Options{Kubeconfig: file, Logger: log})
//	go c.Run(ctx)
//	for range c.Changed() {
//		if cluster, synced := c.Snapshot(); synced {
//			c.Apply(decide(cluster)) // or c.Withhold()
//		}
//	}
//
// While the API server is away snapshots stay as they were, and soon say that
// they are stale.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"e13.dev/gatehouse/internal/edge"
)

// FieldManager is the name under which the API server keeps what gatehouse wrote.
const FieldManager = "gatehouse"

// Finalizer is what gatehouse puts on Services that are open, so that they are
// gone only once they are closed. That of the cloud's service controller,
// service.kubernetes.io/load-balancer-cleanup, is not touched.
const Finalizer = edge.AnnotationPrefix + "closed"

// Options say how to reach the cluster.
type Options struct {
	Kubeconfig string // path; empty: in-cluster, then KUBECONFIG
	UserAgent  string // empty: "gatehouse"
	Logger     *slog.Logger
	Namespaces bool // read the labels of namespaces
	Routes     bool // read the names of Ingresses and Gateways' routes
}

// Client reads and writes one cluster.
type Client struct {
	log       *slog.Logger
	file      string
	userAgent string
	conn      atomic.Pointer[connection]
	state     *state
	fresh     *freshness
	changed   chan struct{}
	writer    *writer
	events    *eventQueue
	requests  *requestCounter

	mu       sync.Mutex
	problems map[string][]edge.Problem // by what was tried
	refusals map[string]error          // by the optional resource
	stumbles map[string]int            // how often in a row it was not given

	shortestWatch  time.Duration // by the clock of tests
	servedInterval time.Duration // likewise

	// allServices is set when the API server cannot select Services by type
	// (Kubernetes before 1.31): all are read, and most of them dropped.
	allServices atomic.Bool
}

// New finds the configuration and checks it. It sends nothing.
func New(o Options) (*Client, error) {
	quietOnce.Do(func() { quiet(o.Logger) })
	c := &Client{
		log:       o.Logger,
		file:      o.Kubeconfig,
		userAgent: cmp.Or(o.UserAgent, "gatehouse"),
		changed:   make(chan struct{}, 1),
		events:    newEventQueue(),
		requests:  newRequestCounter(),
		problems:  make(map[string][]edge.Problem),
		refusals:  make(map[string]error),
		stumbles:  make(map[string]int),

		shortestWatch: shortestWatch, servedInterval: servedInterval,
	}
	c.state = newState(c.notify)
	c.fresh = newFreshness(c.notify)
	c.writer = newWriter()
	c.state.withNamespaces(o.Namespaces)
	c.state.withRoutes(o.Routes)
	c.state.released = c.writer.wakeUp
	source, err := loadSource(c.file)
	if err != nil {
		return nil, err
	}
	conn, err := source.connect(c.userAgent, c.requests)
	if err != nil {
		return nil, err
	}
	c.conn.Store(conn)
	return c, nil
}

// Run watches the cluster and writes what Apply and Emit were given, until ctx
// is done.
func (c *Client) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range c.kinds(c.state) {
		g.Go(func() error {
			c.follow(ctx, k)
			return nil
		})
	}
	if c.state.routes != nil {
		g.Go(func() error {
			c.followRoutes(ctx)
			return nil
		})
	}
	g.Go(func() error { return c.writeStatuses(ctx) })
	g.Go(func() error { return c.recordEvents(ctx) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	return ctx.Err()
}

// Snapshot is the cluster as last known, and whether all of it has been read
// since the start. Services are sorted by namespace and name, nodes by name.
// The caller must not change it; nobody else will.
func (c *Client) Snapshot() (edge.Cluster, bool) {
	turn, _ := c.state.turn() // first: what comes meanwhile is another one's
	c.writer.seen(turn)
	cluster, synced := c.state.snapshot()
	cluster.Stale = c.fresh.stale()
	return cluster, synced
}

// Changed is sent to after Snapshot or Problems have changed; several changes
// in a row are one. It has one reader.
func (c *Client) Changed() <-chan struct{} { return c.changed }

func (c *Client) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Problems says what keeps gatehouse from reading or writing the cluster now.
func (c *Client) Problems() []edge.Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []edge.Problem
	for _, doing := range slices.Sorted(maps.Keys(c.problems)) {
		for _, p := range c.problems[doing] {
			if !slices.Contains(all, p) { // a login that has expired has expired for all that is read
				all = append(all, p)
			}
		}
	}
	return all
}

// report replaces the problems that doing something has; it says whether that
// made a difference.
func (c *Client) report(doing string, now ...edge.Problem) (news bool) {
	c.mu.Lock()
	same := slices.Equal(c.problems[doing], now)
	if len(now) == 0 {
		delete(c.problems, doing)
	} else {
		c.problems[doing] = now
	}
	c.mu.Unlock()
	if !same {
		c.notify()
	}
	return !same
}

// reach is the report of whether the API server can be reached at all, which
// is the same for whatever is asked of it.
const reach = "reach"

// observe reports how a request went and, if it failed, looks whether the
// login has been renewed meanwhile.
func (c *Client) observe(ctx context.Context, doing string, err error) {
	if ctx.Err() != nil {
		return
	}
	if _, answered := answer(err); err != nil && !answered {
		c.log.Debug("kubernetes_request_failed", "request", doing, "err", err)
		c.report(doing)
		c.report(reach, c.conn.Load().explain(doing, err))
		c.reconnect()
		return
	}
	if c.report(reach) {
		c.retryWrites()
	}
	switch {
	case err == nil:
		c.report(doing)
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		// Too far behind to go on: the reflector starts over.
	default:
		c.log.Debug("kubernetes_request_failed", "request", doing, "err", err)
		c.report(doing, c.conn.Load().explain(doing, err))
		c.reconnect()
	}
}

// noteRead notes whether a kind can be read. That it has to be read anew says
// neither.
func (c *Client) noteRead(ctx context.Context, k kind, err error) {
	switch {
	case ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
	case err == nil:
		c.fresh.read(k.resource)
	default:
		c.fresh.failed(k.resource)
	}
}

// reconnect uses the configuration files if they say something new.
func (c *Client) reconnect() {
	old := c.conn.Load()
	source, err := loadSource(c.file)
	if err != nil || source.sameLogin(old.source) {
		return // a file that is being written is read again at the next failure
	}
	conn, err := source.connect(c.userAgent, c.requests)
	if err != nil {
		return
	}
	if c.conn.CompareAndSwap(old, conn) {
		c.log.Info("login read again", "source", source.name(), "server", source.server())
	}
}

// kind is one of the resources that are read.
type kind struct {
	resource string
	example  runtime.Object
	list     func() listObject
	store    cache.ReflectorStore
	client   func() rest.Interface
	restrict func(*metav1.ListOptions)
	// optional is what may not be there, or not be given: all else goes on. gone is
	// called if it is not there.
	optional bool
	gone     func()
}

type listObject interface {
	runtime.Object
	metav1.ListInterface
}

func (c *Client) kinds(s *state) []kind {
	core := func() rest.Interface { return c.conn.Load().core }
	discovery := func() rest.Interface { return c.conn.Load().discovery }
	all := []kind{{
		resource: "services", example: &corev1.Service{}, store: s.serviceIntake(), client: core,
		list: func() listObject { return &corev1.ServiceList{} },
		restrict: func(o *metav1.ListOptions) {
			if !c.allServices.Load() {
				o.FieldSelector = "spec.type=LoadBalancer"
			}
		},
	}, {
		resource: "endpointslices", example: &discoveryv1.EndpointSlice{}, store: s.sliceIntake(), client: discovery,
		list: func() listObject { return &discoveryv1.EndpointSliceList{} },
		restrict: func(o *metav1.ListOptions) {
			// A headless Service cannot become a LoadBalancer.
			o.LabelSelector = discoveryv1.LabelServiceName + ",!" + corev1.IsHeadlessService
		},
	}, {
		resource: "nodes", example: &corev1.Node{}, store: s.nodeIntake(), client: core,
		list:     func() listObject { return &corev1.NodeList{} },
		restrict: func(*metav1.ListOptions) {},
	}}
	if s.namespaces != nil {
		all = append(all, kind{
			resource: "namespaces", example: &corev1.Namespace{}, store: s.namespaceIntake(), client: core,
			list:     func() listObject { return &corev1.NamespaceList{} },
			restrict: func(*metav1.ListOptions) {},
		})
	}
	return all
}

// follow keeps the store of a kind like the API until ctx is done.
func (c *Client) follow(ctx context.Context, k kind) {
	var began time.Time // the watch before; zero: there was none
	failed := false     // or it could not begin
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.listPage(ctx, k, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			now := time.Now()
			if o.SendInitialEvents == nil && (failed || !began.IsZero() && now.Sub(began) < c.shortestWatch) {
				if err := c.checkVersion(ctx, k, o.ResourceVersion); err != nil {
					return nil, err
				}
			}
			w, err := c.watch(ctx, k, o)
			if began = now; err != nil {
				began = time.Time{}
			}
			failed = err != nil && !apierrors.IsInvalid(err)
			return w, err
		},
	}
	reflector := cache.NewReflectorWithOptions(lw, k.example, k.store, cache.ReflectorOptions{
		Name:            k.resource,
		TypeDescription: k.resource,
		Backoff:         k.backoff(),
	})
	reflector.RunWithContext(ctx)
}

// backoff is at most 2 s between attempts (client-go's own limit is a minute):
// what changed while the API server was away is wanted at once. What is not given
// is asked for less often.
func (k kind) backoff() *wait.Backoff {
	if k.optional {
		return &wait.Backoff{Duration: time.Second, Factor: 2, Cap: 20 * time.Second, Steps: 6, Jitter: 0.5}
	}
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Cap: 1300 * time.Millisecond, Steps: 5, Jitter: 0.5}
}

func (c *Client) listPage(ctx context.Context, k kind, o metav1.ListOptions) (listObject, error) {
	k.restrict(&o)
	list := k.list()
	err := k.client().Get().Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
	if c.selectorRefused(k, o, err) {
		o.FieldSelector = ""
		err = k.client().Get().Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
	}
	c.noteOutcome(ctx, k, "list ", err)
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (c *Client) watch(ctx context.Context, k kind, o metav1.ListOptions) (watch.Interface, error) {
	k.restrict(&o)
	o.Watch = true
	ctx, outcome := withOutcome(ctx)
	// The reflector tries again, and client-go would for half a minute before
	// anybody hears of a server that does not answer.
	w, err := k.client().Get().Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec).MaxRetries(0).Watch(ctx)
	if c.selectorRefused(k, o, err) {
		return nil, err // the reflector lists then
	}
	if o.SendInitialEvents != nil && apierrors.IsInvalid(err) {
		return nil, err // Kubernetes before 1.32 does not stream lists; the reflector lists then
	}
	failure := cmp.Or(err, *outcome)
	c.noteOutcome(ctx, k, "watch ", failure)
	if failure == nil {
		c.report("list " + k.resource) // a stream is a list as well
	}
	return w, err
}

// noteOutcome notes how reading a kind went.
func (c *Client) noteOutcome(ctx context.Context, k kind, verb string, err error) {
	if k.optional {
		c.observeOptional(ctx, k, verb+k.resource, err)
		return
	}
	c.observe(ctx, verb+k.resource, err)
	c.noteRead(ctx, k, err)
}

// selectorRefused notes that the API server cannot select Services by type.
func (c *Client) selectorRefused(k kind, o metav1.ListOptions, err error) bool {
	if o.FieldSelector == "" || !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "field selector") {
		return false
	}
	c.log.Debug("kubernetes_field_selector_refused", "resource", k.resource, "err", err)
	c.allServices.Store(true)
	return true
}

// List reads the cluster once, without watching it.
func (c *Client) List(ctx context.Context) (edge.Cluster, error) {
	s := newState(func() {})
	s.withNamespaces(c.state.namespaces != nil)
	s.withRoutes(c.state.routes != nil)
	g, all := errgroup.WithContext(ctx)
	for _, k := range c.kinds(s) {
		g.Go(func() error {
			if err := c.listAll(all, k); err != nil {
				if all.Err() != nil && errors.Is(err, context.Canceled) {
					return err
				}
				p := c.conn.Load().explain("list "+k.resource, err)
				return fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return edge.Cluster{}, err
	}
	if s.routes != nil {
		c.listRoutes(ctx, s)
	}
	cluster, _ := s.snapshot()
	return cluster, nil
}

func (c *Client) listAll(ctx context.Context, k kind) error {
	transform := k.store.(cache.TransformingStore).Transformer()
	var all []any
	o := metav1.ListOptions{Limit: 500}
	for {
		page, err := c.listPage(ctx, k, o)
		if err != nil {
			return err
		}
		if err := eachItem(page, func(obj any) error {
			v, err := transform(obj)
			all = append(all, v)
			return err
		}); err != nil {
			return err
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return k.store.Replace(all, "")
		}
	}
}

func eachItem(list listObject, f func(obj any) error) error {
	var errs []error
	switch list := list.(type) {
	case *corev1.ServiceList:
		for i := range list.Items {
			errs = append(errs, f(&list.Items[i]))
		}
	case *discoveryv1.EndpointSliceList:
		for i := range list.Items {
			errs = append(errs, f(&list.Items[i]))
		}
	case *corev1.NodeList:
		for i := range list.Items {
			errs = append(errs, f(&list.Items[i]))
		}
	case *routeObjectList:
		for i := range list.Items {
			errs = append(errs, f(&list.Items[i]))
		}
	case *corev1.NamespaceList:
		for i := range list.Items {
			errs = append(errs, f(&list.Items[i]))
		}
	}
	return errors.Join(errs...)
}

// quietOnce: klog's logger belongs to the process.
var quietOnce sync.Once

// quiet sends client-go's own log to ours, all of it at debug level. Without,
// it writes to standard error in a format of its own; what an operator should
// know of it is in Problems.
func quiet(log *slog.Logger) {
	klog.SetLogger(logr.FromSlogHandler(debugHandler{log.Handler()}))
}

type debugHandler struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h debugHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (h debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !h.Handler.Enabled(ctx, r.Level) { // logr does not ask before it hands over an error
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h debugHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return debugHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h debugHandler) WithGroup(name string) slog.Handler {
	return debugHandler{h.Handler.WithGroup(name)}
}
