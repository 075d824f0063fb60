package desired

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// A wish is a name that somebody wants for a Service.
type wish struct {
	name      string
	service   string // namespace/name
	why       string // as NamedBy has it
	namespace string // whose wish it is
	created   time.Time
	// told is whether the Service is told of what comes of it: it says so itself.
	told bool
	// others say whether the name may be meant for somebody else: it is passed over
	// then where it is of a domain that is nobody's here.
	others bool
}

// askNames takes the names that a Service asks for. One that cannot be read
// closes nothing: no more is open by a name.
func (b *builder) askNames(s *edge.Service) {
	if b.in.Config.DNS == nil {
		return
	}
	for _, key := range []string{annDNSNames, edge.ExternalDNSHostname} {
		text, ok := s.Annotations[key]
		if !ok {
			continue
		}
		names, f := config.ParseHostnames(strings.TrimSuffix(strings.TrimSpace(text), ","))
		if f == nil && slices.Contains(names, "*") {
			f = &config.Fault{What: `"*" is no name`, Remedy: `write one such as "*.shop.` + b.in.Config.DNS.Domain + `"`}
		}
		others := key != annDNSNames
		switch {
		case f != nil && others: // external-dns tells of it, if there is one
			continue
		case f != nil:
			b.refuseName(wish{service: s.Key(), why: "service/" + s.Key(), told: true}, refusal{"AnnotationInvalid", "annotation " + key + ": " + f.What, f.Remedy})
			continue
		}
		for _, name := range names {
			b.wishes = append(b.wishes, wish{
				name: name, service: s.Key(), why: "service/" + s.Key(), namespace: s.Namespace, created: s.Created, told: true, others: others,
			})
		}
	}
}

// giveNames decides who has which name: who wanted it first, by age and name,
// and with him all of his namespace.
func (b *builder) giveNames() {
	d := b.in.Config.DNS
	if d == nil {
		return
	}
	for _, h := range b.in.Cluster.Hosts {
		if service := cmp.Or(h.Service, d.IngressClasses[h.Class]); service != "" && config.IsDomainName(h.Host) {
			b.wishes = append(b.wishes, wish{name: h.Host, service: service, why: h.Why, namespace: h.Namespace, created: h.Created, others: true})
		}
	}
	slices.SortFunc(b.wishes, func(x, y wish) int {
		return cmp.Or(strings.Compare(x.name, y.name), x.created.Compare(y.created), strings.Compare(x.namespace, y.namespace),
			strings.Compare(x.why, y.why), strings.Compare(x.service, y.service))
	})
	machines := b.machineNames()
	for len(b.wishes) > 0 {
		n := 1
		for n < len(b.wishes) && b.wishes[n].name == b.wishes[0].name {
			n++
		}
		b.giveName(b.wishes[:n], machines)
		b.wishes = b.wishes[n:]
	}
}

// giveName decides one name.
func (b *builder) giveName(wishes []wish, machines map[string]string) {
	var first *wish
	has := Name{Name: wishes[0].name}
	for i := range wishes {
		w := &wishes[i]
		why, pass := b.mayName(w, machines)
		switch {
		case pass:
			continue
		case why.code != "":
			b.refuseName(*w, why)
			continue
		case slices.ContainsFunc(has.By, func(by NamedBy) bool { return by.Service == w.service }):
			continue // whoever wants it, it is the same
		case first == nil:
			first = w
		case first.namespace != w.namespace:
			b.refuseName(*w, refusal{"DNSNameConflict", fmt.Sprintf("the name %s is taken by %s, which is older", w.name, first.said()), "use another name for one of the two"})
			if first.told {
				b.event(first.service, true, "DNSNameConflict", fmt.Sprintf("%s also wants the name %s; this one is older and keeps it", w.said(), w.name))
			}
			continue
		}
		has.By = append(has.By, NamedBy{Service: w.service, Why: w.why})
	}
	if len(has.By) > 0 {
		b.state.Names = append(b.state.Names, has)
	}
}

// said is who wants it, for people: "service shop/web".
func (w *wish) said() string { return strings.Replace(w.why, "/", " ", 1) }

// refuseName tells whoever has to know that a name is not given.
func (b *builder) refuseName(w wish, why refusal) {
	b.problem(edge.Problem{Object: w.why, What: why.reason, Remedy: why.remedy})
	if w.told {
		b.event(w.service, true, why.code, why.reason+"; "+why.remedy)
	}
}

// mayName says why somebody may not have a name; pass: it is not meant for
// gatehouse.
func (b *builder) mayName(w *wish, machines map[string]string) (why refusal, pass bool) {
	d := b.in.Config.DNS
	base := strings.TrimPrefix(w.name, "*.")
	no := func(reason, remedy string) (refusal, bool) {
		return refusal{"DNSNameNotAllowed", "the name " + w.name + " " + reason, remedy}, false
	}
	domain, allow, limited := allowOf(d, base)
	switch {
	case config.InDomain(base, d.ServiceDomain):
		if w.name == ownName(w.service, d) {
			return refusal{}, true // it has it
		}
		return no("is in "+d.ServiceDomain+", where names follow from namespaces and Services", "use one that is not")
	case !limited && !config.InDomain(base, d.Domain):
		if w.others {
			return refusal{}, true
		}
		return no("is in no domain of this site", "use one in "+d.Domain+", or have the operator name its domain in dns.allow ("+d.Pos.String()+")")
	case !limited && base == d.Domain:
		return no("stands for the whole site", "use one below "+d.Domain+", or have the operator name "+d.Domain+" in dns.allow ("+d.Pos.String()+")")
	case !limited && slices.ContainsFunc(d.Forwards, func(f config.Forward) bool { return config.InDomain(base, f.Domain) }):
		return no("is in a domain for which other servers are asked", "use another one, or have the operator name the domain in dns.allow ("+d.Pos.String()+")")
	case config.Believed(firstLabel(base)) && config.InDomain(base, d.Domain):
		return no("is one that machines look for by themselves, and believe", "use another one")
	case machines[w.name] != "":
		return no("is that of "+machines[w.name], "use another one")
	case limited:
		if reason := b.excluded(&edge.Service{Namespace: w.namespace}, allow.Who); reason != "" {
			return refusal{"DNSNameNotAllowed", reason + " have names in " + domain, "the operator allows it in dns.allow (" + allow.Pos.String() + ")"}, false
		}
	}
	return refusal{}, false
}

// allowOf is who may have a name, as the nearest domain around it says.
func allowOf(d *config.DNS, name string) (domain string, allow config.Allow, ok bool) {
	for domain = name; domain != ""; _, domain, _ = strings.Cut(domain, ".") {
		if allow, ok = d.Allow[domain]; ok {
			return domain, allow, true
		}
	}
	return "", config.Allow{}, false
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

// ownName is the name that a Service has by itself.
func ownName(service string, d *config.DNS) string {
	namespace, name, _ := strings.Cut(service, "/")
	return name + "." + namespace + "." + d.ServiceDomain
}

// machineNames are the names that machines have, and those of the file, with
// whose they are.
func (b *builder) machineNames() map[string]string {
	d := b.in.Config.DNS
	names := map[string]string{}
	in := func(name string) string {
		if name = strings.ToLower(name); config.InDomain(name, d.Domain) {
			return name
		}
		return name + "." + d.Domain
	}
	for i := range b.in.Config.DHCP {
		for _, r := range b.in.Config.DHCP[i].Reservations {
			if name := cmp.Or(r.Hostname, r.Node); name != "" {
				names[in(name)] = "the reservation at " + r.Pos.String()
			}
		}
	}
	for i := range b.in.Cluster.Nodes {
		names[in(b.in.Cluster.Nodes[i].Name)] = "node " + b.in.Cluster.Nodes[i].Name
	}
	names[in(config.OwnName)] = "this machine"
	for i := range d.Records {
		if r := &d.Records[i]; r.CNAME != "" || len(r.Addresses) > 0 {
			names[r.Name] = "the record at " + r.Pos.String()
		}
	}
	return names
}
