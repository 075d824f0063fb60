package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// The types of the conditions that are written: whether a Service is open, and
// Kubernetes' own (KEP-1435), which is there while a port cannot be served.
const (
	conditionExposed = edge.AnnotationPrefix + "Exposed"
	conditionPorts   = "LoadBalancerPortsError"
)

// maxMessage is how long the message of a condition gets, in bytes: it can quote
// what the Service's owner has written. The API takes 32 KiB.
const maxMessage = 1024

// exposed is what the conditions of a Service say: where it is open, and where
// not and why. They say nothing that changes by itself, such as the health of
// backends: each change is written, and wakes whoever watches Services.
type exposed struct {
	open    []string // "zone home at 10.11.12.70, port 80"
	closed  []string // "zone internet: TCP port 80 ... is taken by ..."
	first   refusal  // why the first one is closed
	ports   []string
	portsBy string // code of the first port that cannot be served
	lasting bool   // a row is open, or waits for an address
}

// add takes the rows of one zone, with the addresses and ports that are open, and
// what is lacking there.
func (x *exposed) add(zone string, rows []Exposure, addrs []netip.Addr, open []string, lacks []refusal) {
	where := ""
	if zone != "" {
		where = "zone " + zone
	}
	switch {
	case len(open) == 0:
	case len(addrs) == 0:
		// It may listen there at addresses of its other zones alone: then it is known
		// what keeps it from those of this one.
		x.lasting = true
		if len(lacks) == 0 && !slices.ContainsFunc(rows, func(e Exposure) bool { return e.Open && e.lacks != "" }) {
			x.shut(where, refusal{"NoAddress", "its interfaces have no address yet", ""})
		}
	default:
		x.lasting = true
		x.open = append(x.open, fmt.Sprintf("%s at %s, port %s", where, addrText(addrs), strings.Join(open, ", ")))
	}
	if len(open) > 0 {
		for _, why := range lacks {
			x.shut(where, why)
		}
	}
	type group struct {
		why   refusal
		ports []string
	}
	var groups []group
	for i := range rows { // sorted by portsOf
		e := &rows[i]
		if e.Open && e.lacks != "" {
			x.shut(where+", port "+portText(e.Protocol, e.Port), refusal{"PortConflict", e.lacks, ""})
		}
		if e.Open {
			continue
		}
		x.lasting = x.lasting || e.code == addressPending
		why := refusal{e.code, e.Reason, e.Remedy}
		k := slices.IndexFunc(groups, func(g group) bool { return g.why == why })
		if k < 0 {
			k = len(groups)
			groups = append(groups, group{why: why})
		}
		if e.Port == 0 {
			continue
		}
		groups[k].ports = append(groups[k].ports, portText(e.Protocol, e.Port))
		if e.code != addressPending {
			x.ports = append(x.ports, fmt.Sprintf("port %s in %s: %s", portText(e.Protocol, e.Port), where, e.Reason))
			x.portsBy = cmp.Or(x.portsBy, e.code)
		}
	}
	for _, g := range groups {
		at := where
		if len(open) > 0 && len(g.ports) > 0 { // only these
			at += ", port " + strings.Join(g.ports, ", ")
		}
		x.shut(at, g.why)
	}
}

func (x *exposed) shut(where string, why refusal) {
	if x.first == (refusal{}) {
		x.first = why
	}
	text := why.reason
	if where != "" {
		text = where + ": " + text
	}
	if !slices.Contains(x.closed, text) {
		x.closed = append(x.closed, text)
	}
}

func (x *exposed) conditions() []edge.Condition {
	c := edge.Condition{Type: conditionExposed}
	switch {
	case len(x.open) > 0 && len(x.closed) == 0:
		c.True, c.Reason, c.Message = true, "Open", strings.Join(x.open, "; ")
	case len(x.open) > 0:
		c.True, c.Reason, c.Message = true, "PartlyOpen", strings.Join(x.open, "; ")+"; closed: "+strings.Join(x.closed, "; ")
	case len(x.closed) > 0:
		c.Reason, c.Message = x.first.code, strings.Join(x.closed, "; ")
		if len(x.closed) == 1 && x.first.remedy != "" {
			c.Message += "; " + x.first.remedy
		}
	default:
		c.Reason, c.Message = "NoPort", "it has no port"
	}
	c.Message = shortened(c.Message)
	if len(x.ports) == 0 {
		return []edge.Condition{c}
	}
	return []edge.Condition{{Type: conditionPorts, True: true, Reason: x.portsBy, Message: shortened(strings.Join(x.ports, "; "))}, c}
}

// shortened cuts a text, between two characters.
func shortened(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	const more = " ..."
	return strings.ToValidUTF8(text[:maxMessage-len(more)], "") + more
}
