package conntrack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// What the library has no words for (linux/netfilter/nfnetlink_conntrack.h and
// nf_conntrack_common.h).
const (
	ctaTupleZone  = 3
	ctaStatusMask = 26 // Linux 5.15

	statusSeenReply = 1 << 1
	statusDstNAT    = 1 << 5
)

// numbered returns the protocol of a number, which is empty if it is none of ours.
func numbered(number uint8) edge.Protocol {
	switch number {
	case unix.IPPROTO_TCP:
		return edge.TCP
	case unix.IPPROTO_UDP:
		return edge.UDP
	case unix.IPPROTO_SCTP:
		return edge.SCTP
	}
	return ""
}

func numberOf(p edge.Protocol) uint8 {
	switch p {
	case edge.TCP:
		return unix.IPPROTO_TCP
	case edge.UDP:
		return unix.IPPROTO_UDP
	case edge.SCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// tcpStates are in the order of the kernel's enum tcp_conntrack.
var tcpStates = [...]TCPState{"NONE", SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close, SynSent2}

// parse reads an entry, from behind the netlink header. It is not ok if that is
// none of a protocol and a zone that are looked at here, or makes no sense.
func parse(b []byte) (f Flow, ok bool) {
	if len(b) < nl.SizeofNfgenmsg {
		return Flow{}, false
	}
	var reply tuple
	for kind, value := range attributes(b[nl.SizeofNfgenmsg:]).all {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			t := parseTuple(value)
			f.Protocol, f.Client, f.Front = t.protocol, t.source, t.destination
		case nl.CTA_TUPLE_REPLY:
			reply = parseTuple(value)
			f.Backend, f.Seen = reply.source, reply.destination
		case nl.CTA_ZONE:
			return Flow{}, false
		case nl.CTA_STATUS:
			status := be32(value)
			f.Replied, f.DNAT = status&statusSeenReply != 0, status&statusDstNAT != 0
		case nl.CTA_PROTOINFO:
			f.State = parseState(value)
		case nl.CTA_TIMEOUT:
			f.Timeout = time.Duration(be32(value)) * time.Second
		case nl.CTA_ID:
			f.ID = be32(value)
		}
	}
	ok = f.Protocol != "" && f.Protocol == reply.protocol &&
		sameFamily(f.Client, f.Front) && sameFamily(f.Client, f.Backend) && sameFamily(f.Client, f.Seen)
	if !ok {
		return Flow{}, false
	}
	return f, true
}

func sameFamily(a, b netip.AddrPort) bool {
	return a.IsValid() && a.Addr().BitLen() == b.Addr().BitLen()
}

// tuple is one direction of a flow. It has no protocol if it is one that is not
// looked at.
type tuple struct {
	protocol            edge.Protocol
	source, destination netip.AddrPort
}

func parseTuple(b []byte) (t tuple) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for kind, value := range attributes(b).all {
		switch kind {
		case nl.CTA_TUPLE_IP:
			for kind, value := range attributes(value).all {
				switch kind {
				case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
					from, _ = netip.AddrFromSlice(value)
				case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
					to, _ = netip.AddrFromSlice(value)
				}
			}
		case nl.CTA_TUPLE_PROTO:
			for kind, value := range attributes(value).all {
				switch {
				case kind == nl.CTA_PROTO_NUM && len(value) == 1:
					t.protocol = numbered(value[0])
				case kind == nl.CTA_PROTO_SRC_PORT:
					fromPort = be16(value)
				case kind == nl.CTA_PROTO_DST_PORT:
					toPort = be16(value)
				}
			}
		case ctaTupleZone:
			return tuple{}
		}
	}
	t.source, t.destination = netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
	return t
}

func parseState(b []byte) TCPState {
	for kind, value := range attributes(b).all {
		if kind != nl.CTA_PROTOINFO_TCP {
			continue
		}
		for kind, value := range attributes(value).all {
			if kind == nl.CTA_PROTOINFO_TCP_STATE && len(value) == 1 && int(value[0]) < len(tcpStates) {
				return tcpStates[value[0]]
			}
		}
	}
	return ""
}

// attributes are those of netlink, one behind the other.
type attributes []byte

// all calls yield for each attribute, up to one whose length is wrong.
func (b attributes) all(yield func(kind uint16, value []byte) bool) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		if !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofNlAttr:size]) {
			return
		}
		b = b[min(align(size), len(b)):]
	}
}

// A number of another size than it should have counts as none.
func be16(b []byte) uint16 {
	if len(b) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func be32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// listRequest asks for the entries of both families. Kernels before Linux 5.15
// do not know the attributes, and send all.
func listRequest(f Filter) []byte {
	b := appendHeader(nil, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 0, unix.AF_UNSPEC)
	if f.DNAT { // the kernel refuses an empty mask
		b = appendAttribute(b, nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, statusDstNAT))
		b = appendAttribute(b, ctaStatusMask, binary.BigEndian.AppendUint32(nil, statusDstNAT))
	}
	return finish(b, 0)
}

// appendDelete asks to delete the entry whose answers come from the backend to
// the address that it sees, if it has the flow's ID; and if it is the last
// request, for an answer. Without a tuple it would ask to delete all.
func appendDelete(b []byte, f *Flow, sequence uint32, last bool) []byte {
	flags := uint16(unix.NLM_F_REQUEST)
	if last {
		flags |= unix.NLM_F_ACK
	}
	family := uint8(unix.AF_INET)
	if f.Backend.Addr().Is6() {
		family = unix.AF_INET6
	}
	start := len(b)
	b = appendHeader(b, nl.IPCTNL_MSG_CT_DELETE, flags, sequence, family)
	b = appendTuple(b, nl.CTA_TUPLE_REPLY, tuple{f.Protocol, f.Backend, f.Seen})
	b = appendAttribute(b, nl.CTA_ID, binary.BigEndian.AppendUint32(nil, f.ID))
	return finish(b, start)
}

func appendTuple(b []byte, kind uint16, t tuple) []byte {
	source, destination := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
	if t.source.Addr().Is6() {
		source, destination = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	ip := appendAttribute(nil, source, t.source.Addr().AsSlice())
	ip = appendAttribute(ip, destination, t.destination.Addr().AsSlice())
	proto := appendAttribute(nil, nl.CTA_PROTO_NUM, []byte{numberOf(t.protocol)})
	proto = appendAttribute(proto, nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, t.source.Port()))
	proto = appendAttribute(proto, nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, t.destination.Port()))
	both := appendAttribute(nil, nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, ip)
	both = appendAttribute(both, nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, proto)
	return appendAttribute(b, kind|unix.NLA_F_NESTED, both)
}

// appendHeader begins a message; finish completes it with its length.
func appendHeader(b []byte, operation, flags uint16, sequence uint32, family uint8) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|operation)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = append(b, 0, 0, 0, 0) // the sender, which the kernel knows
	return append(b, family, nl.NFNETLINK_V0, 0, 0)
}

func finish(b []byte, start int) []byte {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}
