package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// sources says whether a client may connect, by its address.
func (e *engine) sources(c *chain, o *origin, f *edge.Frontend, to netip.Addr) {
	if c.over {
		return
	}
	source, ranges := f.Why, f.SourceRanges
	where := "sourceRanges"
	if strings.HasPrefix(f.Why, "service/") {
		where = "spec.loadBalancerSourceRanges"
	}
	client := o.client
	if o.local && !client.IsValid() {
		client = to // the kernel takes the address that it connects to
	}
	if client.IsValid() && client.Is4() != to.Is4() {
		c.stop("source range", "", "ask for an address of the client's own family", "%s cannot speak to %s: one is IPv4, the other IPv6", client, to)
		return
	}
	if ranges == nil {
		c.ok("source range", source, "everybody may connect")
		return
	}
	texts := textsOf(ranges)
	proxied := func(a netip.Addr) bool { return contains(f.AcceptProxyProtocol, a) }
	switch {
	case client.IsValid() && proxied(client):
		what := fmt.Sprintf("%s is a proxy in front, and it is whom its header names that has to be in %s", client, texts)
		c.notAll(what)
		c.ok("source range", source, "%s", what)
	case client.IsValid() && contains(ranges, client):
		c.ok("source range", source, "%s is in %s (%s)", client, texts, where)
	case client.IsValid():
		c.stop("source range", source, fmt.Sprintf("add %s to %s", netip.PrefixFrom(client, client.BitLen()), where), "%s is in none of %s (%s)", client, cmp.Or(texts, "no range at all"), where)
	default:
		e.sourcesOfAll(c, source, where, ranges, to.Is4())
	}
}

// sourcesOfAll is sources for everybody who can come from somewhere.
func (e *engine) sourcesOfAll(c *chain, source, where string, ranges []netip.Prefix, is4 bool) {
	family := "IPv6"
	if is4 {
		family = "IPv4"
	}
	mine := slices.DeleteFunc(slices.Clone(ranges), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
	switch {
	case len(mine) == 0:
		c.stop("source range", source, "add networks of clients to "+where, "no %s client may connect: %s has %s", family, where, cmp.Or(textsOf(ranges), "no range"))
	case slices.ContainsFunc(mine, func(p netip.Prefix) bool { return p.Bits() == 0 }):
		c.ok("source range", source, "every %s client may connect (%s)", family, where)
	default:
		what := fmt.Sprintf("only clients of %s may connect (%s)", textsOf(mine), where)
		c.notAll(what)
		c.ok("source range", source, "%s", what)
	}
}

// bans says whether a client has come too often.
func (e *engine) bans(c *chain, o *origin, f *edge.Frontend, to netip.Addr) {
	client := o.client
	if o.local && !client.IsValid() {
		client = to // as of sources
	}
	if c.over || !client.IsValid() || contains(f.AcceptProxyProtocol, client) { // of those, whom the header names
		return
	}
	for _, b := range e.Bans {
		if b.Door == f.Door && b.Frontend == f.Name && b.Client.Contains(client) {
			c.stop("rate limit", f.Why, "wait until then, or raise maxRatePerClient, or lower banTime", "%s is banned until %s: it has opened more than %s new connections",
				client, b.Until.Format(time.DateTime), f.MaxRatePerClient)
			return
		}
	}
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

func textsOf(networks []netip.Prefix) string {
	var texts []string
	for _, p := range networks {
		texts = append(texts, p.String())
	}
	return listed(texts)
}

// plane says what moves the bytes.
func (e *engine) plane(c *chain, f *edge.Frontend, row *desired.Exposure) {
	if c.over {
		return
	}
	source := f.Why
	if k := e.Config.Kubernetes; k != nil && row.Service != "" {
		if s := e.services[row.Service]; s == nil || s.Annotations[edge.AnnotationPrefix+"data-plane"] == "" {
			source = k.At("dataPlane").String()
		}
	}
	if f.DataPlane == edge.DataPlaneNAT {
		c.ok("data plane", source, "nat: the kernel sends it on")
	} else {
		c.ok("data plane", source, "proxy: gatehouse takes the connection, and makes one to a backend")
	}
}

// backends says who is behind a frontend, and whether somebody answers.
func (e *engine) backends(c *chain, f *edge.Frontend, row *desired.Exposure, to netip.Addr) {
	if c.over {
		return
	}
	all := f.Backends
	if f.DataPlane == edge.DataPlaneNAT { // it does not change the family
		all = slices.DeleteFunc(slices.Clone(all), func(b edge.Backend) bool { return b.Addr.Addr().Is4() != to.Is4() })
	}
	for _, b := range all {
		c.Backend = append(c.Backend, Receiver{Backend: b, Shares: sharesOf(row, b)})
	}
	weighs := slices.ContainsFunc(all, func(b edge.Backend) bool { return b.Weight > 0 })
	switch {
	case len(all) == 0 && len(f.Backends) > 0:
		c.stop("backend", f.Why, "use data plane proxy, which connects the families, or give it backends of both",
			"it has no backend of the client's IP family, and data plane nat does not change that")
		return
	case len(all) == 0:
		c.stop("backend", e.sourceOfBackends(row), cmp.Or(row.Remedy, "see that pods of it run and are ready: kubectl get endpointslices"+selectorOf(row)), "%s", cmp.Or(row.Reason, "it has no backend"))
		return
	case !weighs:
		c.stop("backend", e.sourceOfBackends(row), cmp.Or(row.Remedy, "see that pods of it are ready"), "%s", cmp.Or(row.Reason, "every backend has weight 0"))
		return
	}
	c.ok("backend", e.sourceOfBackends(row), "%s", backendsText(all, row))
	e.health(c, f, row, all)
	if !c.over {
		e.shares(c, f, row, all)
	}
}

// sourceOfBackends is where they come from.
func (e *engine) sourceOfBackends(row *desired.Exposure) string { return row.Why }

func selectorOf(row *desired.Exposure) string {
	namespace, name, ok := strings.Cut(row.Service, "/")
	if !ok {
		return ""
	}
	return fmt.Sprintf(" -n %s -l kubernetes.io/service-name=%s", namespace, name)
}

func backendsText(all []edge.Backend, row *desired.Exposure) string {
	words := map[edge.Target][2]string{
		edge.TargetNodePort: {"node port", "node ports"}, edge.TargetPod: {"pod", "pods"}, edge.TargetStatic: {"address", "addresses"},
		edge.TargetAddress: {"address of another controller", "addresses of another controller"},
	}
	what, known := words[row.Target]
	if !known {
		what = [2]string{"backend", "backends"}
	}
	if len(all) == 1 {
		return fmt.Sprintf("it goes to one %s, %s", what[0], all[0].Addr)
	}
	return fmt.Sprintf("it goes to one of %d %s", len(all), what[1])
}

func sharesOf(row *desired.Exposure, b edge.Backend) []desired.PodShare {
	var shares []desired.PodShare
	for _, s := range row.Shares {
		if slices.Contains(b.Pods, s.Pod) {
			shares = append(shares, s)
		}
	}
	return shares
}

// health says who of the backends is up.
func (e *engine) health(c *chain, f *edge.Frontend, row *desired.Exposure, all []edge.Backend) {
	counts := map[edge.BackendState]int{}
	var down []string
	unprobed := true
	for _, b := range all {
		unprobed = unprobed && !b.Probe.IsValid()
		if b.Weight == 0 {
			continue
		}
		counts[b.State]++
		if b.State == edge.Down {
			down = append(down, fmt.Sprintf("%s: %s", b.Addr, cmp.Or(b.Error, "its checks fail")))
		}
	}
	n := counts[edge.Up] + counts[edge.Pending] + counts[edge.Down]
	switch {
	case unprobed:
		c.ok("health", f.Why, "they are not checked, and taken to be up")
	case counts[edge.Up] == n:
		c.ok("health", f.Why, "all of them are up")
	case counts[edge.Up] > 0:
		text := fmt.Sprintf("%d of %d are up", counts[edge.Up], n)
		if len(down) > 0 {
			text += "; down is " + listed(down)
		}
		c.ok("health", f.Why, "%s", text)
	case counts[edge.Pending] > 0:
		c.ok("health", f.Why, "none has answered a check yet: connections wait for the first one, up to five seconds")
	default:
		what := "every backend fails its checks, and it is tried all the same"
		if f.RefuseWhenDown {
			what = "every backend fails its checks, and clients are turned away"
		}
		c.stop("health", f.Why, cmp.Or(row.Remedy, "mend the backends, or the check"), "%s (%s)", what, listed(down))
	}
}

// shares says how connections are spread.
func (e *engine) shares(c *chain, f *edge.Frontend, row *desired.Exposure, all []edge.Backend) {
	var parts []string
	percent := func(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }
	if len(row.Shares) > 0 {
		for _, s := range row.Shares {
			parts = append(parts, s.Pod+" "+percent(s.Share))
		}
	} else {
		for _, b := range all {
			if b.Share > 0 {
				parts = append(parts, b.Addr.String()+" "+percent(b.Share))
			}
		}
	}
	balance := map[edge.Balance]string{edge.BalanceLeastConnections: "by the fewest connections", edge.BalanceSource: "by the client's address"}[f.Balance]
	c.ok("share", f.Why, "of new connections, %s: %s", cmp.Or(balance, "at random by weight"), listed(parts))
}
