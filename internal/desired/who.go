package desired

import (
	"fmt"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// excluded is why a Service is not among those that a Who chooses, and goes on
// with what that is about; empty: it is. Where it is not known it is not.
func (b *builder) excluded(s *edge.Service, who config.Who) string {
	isNamed := who.Namespaces != nil || who.NamespaceLabels != ""
	switch {
	case !isNamed || slices.Contains(who.Namespaces, s.Namespace) || b.namespaceMatches(s.Namespace, who.NamespaceLabels):
	case who.NamespaceLabels != "" && b.in.Cluster.Namespaces == nil:
		return "the labels of namespaces are not known yet, and namespace " + s.Namespace + " may not"
	default:
		return "namespace " + s.Namespace + " may not"
	}
	if who.Labels != "" {
		if selector, ok := b.selector(who.Labels); !ok || !selector.Matches(s.Labels) {
			return fmt.Sprintf("only Services labelled %s may", who.Labels)
		}
	}
	return ""
}

func (b *builder) namespaceMatches(namespace, labels string) bool {
	if labels == "" {
		return false
	}
	selector, ok := b.selector(labels)
	has, known := b.in.Cluster.Namespaces[namespace]
	return ok && known && selector.Matches(has)
}

// selector parses each text once. config.Parse lets none through that is none.
func (b *builder) selector(text string) (edge.Selector, bool) {
	s, done := b.selectors[text]
	if !done {
		var err error
		if s, err = edge.ParseSelector(text); err != nil {
			s = nil
		}
		b.selectors[text] = s
	}
	return s, s != nil
}

// mayOpen says whether a Service may ask for a zone, or why it may not.
func (b *builder) mayOpen(s *edge.Service, zone string) (config.Allow, string) {
	allow, limited := b.in.Config.Kubernetes.Allow[zone]
	if !limited {
		return allow, ""
	}
	return allow, b.excluded(s, allow.Who)
}

func (b *builder) zoneNames() []string {
	var names []string
	for _, z := range b.in.Config.Zones {
		names = append(names, z.Name)
	}
	slices.Sort(names)
	return names
}

// zoneRemedy names the zones that a Service may ask for, and picks none: a
// command that can be pasted must not open what was not thought about.
func (b *builder) zoneRemedy(s *edge.Service) string {
	var may []string
	for _, zone := range b.zoneNames() {
		if _, why := b.mayOpen(s, zone); why == "" {
			may = append(may, zone)
		}
	}
	if len(may) == 0 {
		return "there is no zone that namespace " + s.Namespace + " may open"
	}
	return fmt.Sprintf("kubectl annotate --overwrite service -n %s %s %s=ZONE, with one or more of %s", s.Namespace, s.Name, annZones, strings.Join(may, ","))
}

// poolHint names the pools that a Service may have addresses of.
func (b *builder) poolHint(s *edge.Service) string {
	var may []string
	for i := range b.in.Config.Pools {
		p := &b.in.Config.Pools[i]
		if _, why := b.mayOpen(s, p.Zone); why == "" && b.excluded(s, p.Who) == "" {
			may = append(may, p.Name)
		}
	}
	if len(may) == 0 {
		return "there is no pool that it may have addresses of"
	}
	return "of pools it may have " + strings.Join(may, ", ")
}

func zoneHint(asked string, have []string) string {
	switch {
	case len(have) == 0:
		return "the operator has defined no zones"
	case strings.ContainsAny(asked, " \t"):
		return "separate zones with commas; have " + strings.Join(have, ", ")
	default:
		return "have " + strings.Join(have, ", ")
	}
}
