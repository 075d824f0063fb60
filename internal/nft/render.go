package nft

import (
	"fmt"
	"hash/fnv"

	"sigs.k8s.io/knftables"
)

// State is what the table is for. The zero State is for nothing.
type State struct {
	// TransparentMark is set, beside what else is marked, in packets that belong
	// to transparent sockets of this machine, so that they can be routed to it. 0:
	// there are none.
	TransparentMark uint32
}

// Render says what the table has in it: the table itself, chains, and rules.
// Nothing, if the state is the zero State.
//
// A chain is hooked where the kernel wants it, and is named for what it does;
// later ones go beside it. Each rule's comment says what it is for, and ends in
// a sum of the whole table by which a table of another version is known.
func Render(s State) []knftables.Object {
	var objects []knftables.Object
	if s.TransparentMark != 0 {
		objects = append(objects, transparent(s.TransparentMark)...)
	}
	if len(objects) == 0 {
		return nil
	}
	objects = append([]knftables.Object{&knftables.Table{}}, objects...)
	sum := sumOf(objects)
	for _, o := range objects {
		if r, ok := o.(*knftables.Rule); ok {
			r.Comment = new(*r.Comment + " " + sum)
		}
	}
	return objects
}

// transparent marks what comes back to a transparent socket: it is for an
// address of somebody else, and would be forwarded to that.
//
// The kernel looks for the socket (nft_socket.c), also of the packet that an ICMP
// error is about, which is how a connection learns that a port is closed or a
// packet too large. "wildcard 0" leaves out sockets that are bound to no
// address: a proxy of somebody else that listens on a port by TPROXY would
// otherwise get what is forwarded to that port of any other machine.
func transparent(mark uint32) []knftables.Object {
	const chain = "transparent"
	return []knftables.Object{
		&knftables.Chain{
			Name:     chain,
			Type:     new(knftables.FilterType),
			Hook:     new(knftables.PreroutingHook),
			Priority: new(knftables.ManglePriority),
		},
		&knftables.Rule{
			Chain:   chain,
			Rule:    fmt.Sprintf("meta l4proto { tcp, udp, icmp, icmpv6 } socket transparent 1 socket wildcard 0 meta mark set meta mark or %#x", mark),
			Comment: new("answers to clients' own addresses"),
		},
	}
}

// sumOf is short: it tells versions apart, and does not keep anybody from
// forging them.
func sumOf(objects []knftables.Object) string {
	tx := knftables.NewFake(family, Table).NewTransaction()
	for _, o := range objects {
		tx.Add(o)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(tx.String()))
	return fmt.Sprintf("%08x", h.Sum32())
}
