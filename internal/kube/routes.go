package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	networkingGroup = "networking.k8s.io"
	gatewayGroup    = "gateway.networking.k8s.io"
	// oldClass named the class of an Ingress before spec.ingressClassName did.
	oldClass = "kubernetes.io/ingress.class"
)

// A routeKind is a resource that says which names are served by what. An API
// server may not have it.
type routeKind struct {
	group    string
	resource string // "httproutes"
	kind     string // "HTTPRoute"
	versions []string
}

// routeKinds are those that are read. TLSRoute was not v1 for long.
var routeKinds = []routeKind{
	{networkingGroup, "ingresses", "Ingress", []string{"v1"}},
	{gatewayGroup, "gateways", "Gateway", []string{"v1"}},
	{gatewayGroup, "httproutes", "HTTPRoute", []string{"v1"}},
	{gatewayGroup, "grpcroutes", "GRPCRoute", []string{"v1"}},
	{gatewayGroup, "tlsroutes", "TLSRoute", []string{"v1", "v1alpha3", "v1alpha2"}},
}

// routeVersions are the groups and versions that they are in.
func routeVersions() (all []schema.GroupVersion) {
	for _, k := range routeKinds {
		for _, v := range k.versions {
			if gv := (schema.GroupVersion{Group: k.group, Version: v}); !slices.Contains(all, gv) {
				all = append(all, gv)
			}
		}
	}
	return all
}

func addRoutesToScheme(s *runtime.Scheme) {
	for _, k := range routeKinds {
		for _, v := range k.versions {
			gv := schema.GroupVersion{Group: k.group, Version: v}
			s.AddKnownTypeWithName(gv.WithKind(k.kind), &routeObject{})
			s.AddKnownTypeWithName(gv.WithKind(k.kind+"List"), &routeObjectList{})
		}
	}
	for _, gv := range routeVersions() {
		metav1.AddToGroupVersion(s, gv)
	}
}

// routeObject is what is read of an Ingress, a Gateway or a route: each has some
// of it.
type routeObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		IngressClassName string `json:"ingressClassName"`
		GatewayClassName string `json:"gatewayClassName"`
		Rules            []struct {
			Host string `json:"host"`
		} `json:"rules"`
		Hostnames  []string    `json:"hostnames"`
		ParentRefs []parentRef `json:"parentRefs"`
		Listeners  []struct {
			Name     string `json:"name"`
			Hostname string `json:"hostname"`
			Port     int32  `json:"port"`
		} `json:"listeners"`
	} `json:"spec"`
	Status struct {
		LoadBalancer struct {
			Ingress []struct {
				IP string `json:"ip"`
			} `json:"ingress"`
		} `json:"loadBalancer"`
		Addresses []struct {
			Value string `json:"value"`
		} `json:"addresses"`
		Parents []struct {
			ParentRef  parentRef          `json:"parentRef"`
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"parents"`
	} `json:"status"`
}

type parentRef struct {
	Group       *string `json:"group"`
	Kind        *string `json:"kind"`
	Namespace   string  `json:"namespace"`
	Name        string  `json:"name"`
	SectionName string  `json:"sectionName"`
	Port        int32   `json:"port"`
}

// DeepCopyObject implements runtime.Object. Nobody changes what was read.
func (o *routeObject) DeepCopyObject() runtime.Object {
	c := *o
	return &c
}

type routeObjectList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []routeObject `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (o *routeObjectList) DeepCopyObject() runtime.Object {
	c := *o
	return &c
}

// route is what is kept of one.
type route struct {
	kind            string // "ingress", "httproute"
	namespace, name string
	created         time.Time
	class           string
	hosts           []string     // in lower case; sorted
	addrs           []netip.Addr // where its controller says that it is served
	listeners       []listener   // of a Gateway
	parents         []parent     // of a route: the Gateways that have accepted it
}

type listener struct {
	name, host string
	port       uint16
}

// parent is a Gateway that a route is at, or some of its listeners.
type parent struct {
	namespace, name string
	section         string // of one listener; empty: all
	port            uint16 // of listeners; 0: all
}

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (r *route) GetObjectMeta() metav1.Object { return nameOnly(r.namespace, r.name) }

func (r *route) key() string { return r.namespace + "/" + r.name }

func convertRoute(kind string) func(*routeObject) *route {
	return func(in *routeObject) *route {
		out := &route{
			kind: kind, namespace: in.Namespace, name: in.Name, created: in.CreationTimestamp.UTC(),
			class: cmp.Or(in.Spec.IngressClassName, in.Spec.GatewayClassName, in.Annotations[oldClass]),
		}
		hosts := slices.Clone(in.Spec.Hostnames)
		for _, r := range in.Spec.Rules {
			hosts = append(hosts, r.Host)
		}
		for _, h := range hosts {
			if h = strings.ToLower(strings.TrimSuffix(h, ".")); h != "" {
				out.hosts = append(out.hosts, h)
			}
		}
		slices.Sort(out.hosts)
		out.hosts = slices.Compact(out.hosts)
		for _, i := range in.Status.LoadBalancer.Ingress {
			if a, ok := parseAddr(i.IP); ok {
				out.addrs = append(out.addrs, a)
			}
		}
		for _, i := range in.Status.Addresses {
			if a, ok := parseAddr(i.Value); ok { // else a name
				out.addrs = append(out.addrs, a)
			}
		}
		for _, l := range in.Spec.Listeners {
			port, _ := portNumber(l.Port)
			out.listeners = append(out.listeners, listener{l.Name, strings.ToLower(l.Hostname), port})
		}
		out.parents = acceptedBy(in)
		return out
	}
}

// acceptedBy are the Gateways that have taken a route: one that a Gateway does
// not let in must not have its names.
func acceptedBy(in *routeObject) (all []parent) {
	for _, p := range in.Status.Parents {
		ref := p.ParentRef
		if deref(ref.Kind) != "" && *ref.Kind != "Gateway" || deref(ref.Group) != "" && *ref.Group != gatewayGroup {
			continue
		}
		accepted := slices.ContainsFunc(p.Conditions, func(c metav1.Condition) bool { return c.Type == "Accepted" && c.Status == metav1.ConditionTrue })
		wanted := slices.ContainsFunc(in.Spec.ParentRefs, func(w parentRef) bool {
			return w.Name == ref.Name && cmp.Or(w.Namespace, in.Namespace) == cmp.Or(ref.Namespace, in.Namespace) && w.SectionName == ref.SectionName && w.Port == ref.Port
		})
		if accepted && wanted {
			port, _ := portNumber(ref.Port)
			all = append(all, parent{cmp.Or(ref.Namespace, in.Namespace), ref.Name, ref.SectionName, port})
		}
	}
	return all
}

const (
	// routesPatience is how long the snapshot waits for Ingresses and routes, which
	// may not be there, or not be allowed.
	routesPatience = 5 * time.Second
	// servedInterval is how often it is asked whether the API server has got what it
	// had not.
	servedInterval = 15 * time.Second
)

// followRoutes reads Ingresses and routes as far as the API server has them and
// gives them, until ctx is done.
func (c *Client) followRoutes(ctx context.Context) {
	timer := time.AfterFunc(routesPatience, c.state.routesAsked)
	defer timer.Stop()
	ended := make(chan string)
	running := map[string]bool{}
	for {
		for _, k := range routeKinds {
			if running[k.resource] {
				continue
			}
			version, known := c.served(ctx, k)
			if version == "" {
				if known {
					c.state.routeAsked(k.resource)
				}
				continue
			}
			running[k.resource] = true
			go func() {
				c.followRoute(ctx, k, version)
				select {
				case ended <- k.resource:
				case <-ctx.Done():
				}
			}()
		}
		select {
		case <-ctx.Done():
			return
		case resource := <-ended:
			delete(running, resource)
		case <-time.After(c.servedInterval):
		}
	}
}

// followRoute reads one kind until the API server has it no more.
func (c *Client) followRoute(ctx context.Context, k routeKind, version string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reading := c.routeKind(c.state, k, version)
	reading.gone = cancel
	c.follow(ctx, reading)
	_ = reading.store.Replace(nil, "")
	c.refused(k.resource, nil)
}

// routeKind is one of them to be read.
func (c *Client) routeKind(s *state, k routeKind, version string) kind {
	gv := schema.GroupVersion{Group: k.group, Version: version}
	return kind{
		resource: k.resource, example: &routeObject{}, store: s.routeIntake(k), optional: true,
		client:   func() rest.Interface { return c.conn.Load().routes[gv] },
		list:     func() listObject { return &routeObjectList{} },
		restrict: func(*metav1.ListOptions) {},
	}
}

// served is the version in which the API server has a kind; known is false where
// it did not say.
func (c *Client) served(ctx context.Context, k routeKind) (version string, known bool) {
	if k.group == networkingGroup { // each has it since Kubernetes 1.19
		return k.versions[0], true
	}
	for _, version := range k.versions {
		data, err := raw(c.conn.Load().core.Get().AbsPath("/apis/"+k.group+"/"+version).SetHeader("Accept", "application/json").Do(ctx))
		if apierrors.IsNotFound(err) {
			continue
		}
		var list metav1.APIResourceList
		if err == nil {
			err = json.Unmarshal(data, &list)
		}
		if err != nil {
			c.log.Debug("kubernetes_request_failed", "request", "discover "+k.resource, "err", err)
			return "", false
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == k.resource }) {
			return version, true
		}
	}
	return "", true
}

// observeOptional notes how reading of something went without which all else
// goes on.
func (c *Client) observeOptional(ctx context.Context, k kind, doing string, err error) {
	if ctx.Err() != nil {
		return
	}
	if _, answered := answer(err); err != nil && !answered {
		return // whatever else is read tells of that
	}
	switch {
	case err == nil:
		c.refused(k.resource, nil)
		return
	case apierrors.IsNotFound(err):
		if k.gone != nil {
			k.gone()
		}
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return
	default:
		c.log.Debug("kubernetes_request_failed", "request", doing, "err", err)
		if c.lasts(k.resource, err) {
			c.refused(k.resource, err)
		}
		c.reconnect()
	}
	c.state.routeAsked(k.resource)
}

// lasts says whether an answer is more than that of an API server which has just
// learned of a kind: it says 429 for a moment then, "storage is (re)initializing".
func (c *Client) lasts(resource string, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stumbles[resource]++
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || c.stumbles[resource] > 3
}

// refused notes which kinds the API server does not give. That is one problem,
// whichever they are.
func (c *Client) refused(resource string, err error) {
	c.mu.Lock()
	if err == nil {
		delete(c.refusals, resource)
		delete(c.stumbles, resource)
	} else {
		c.refusals[resource] = err
	}
	var resources []string
	for r := range c.refusals {
		resources = append(resources, r)
	}
	slices.Sort(resources)
	var first error
	if len(resources) > 0 {
		first = c.refusals[resources[0]]
	}
	c.mu.Unlock()
	if first == nil {
		c.report("read routes")
		return
	}
	p := c.conn.Load().explain("list "+strings.Join(resources, ", "), first)
	p.What = "the hosts of Ingresses and routes are not known: " + p.What
	p.Remedy += "; everything else goes on"
	c.report("read routes", p)
}

// listRoutes reads them once, as far as they are given.
func (c *Client) listRoutes(ctx context.Context, s *state) {
	for _, k := range routeKinds {
		if version, _ := c.served(ctx, k); version != "" {
			if err := c.listAll(ctx, c.routeKind(s, k, version)); err != nil {
				c.log.Debug("kubernetes_request_failed", "request", "list "+k.resource, "err", err)
			}
		}
	}
}

func (s *state) routeIntake(k routeKind) cache.ReflectorStore {
	asked := false
	return &intake[*routeObject, *route]{
		state: s, synced: &asked, convert: convertRoute(strings.ToLower(k.kind)),
		put:    func(r *route) { s.putRouteLocked(k.resource, r) },
		drop:   func(key string) { s.dropRouteLocked(k.resource, key) },
		keys:   func() []string { return s.routeKeysLocked(k.resource) },
		listed: func() { s.asked[k.resource] = true },
	}
}
