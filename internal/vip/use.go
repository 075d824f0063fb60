package vip

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// inUse are the local addresses that connections are made to: those of TCP of
// this machine, and those of which the kernel rewrites what comes for them.
func inUse() (map[netip.Addr]bool, error) {
	used := map[netip.Addr]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := socketsInUse(family, used); err != nil {
			return nil, fmt.Errorf("list connections: %w", err)
		}
	}
	return used, flowsInUse(used)
}

// States of a connection that has still something to say. (net/tcp_states.h)
const talking = 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

// diagRequest is a struct inet_diag_req_v2 for all TCP connections of a family.
type diagRequest uint8

func (d diagRequest) Len() int { return 56 }

func (d diagRequest) Serialize() []byte {
	b := make([]byte, d.Len())
	b[0], b[1] = uint8(d), unix.IPPROTO_TCP
	copy(b[4:], nl.Uint32Attr(talking))
	return b
}

func socketsInUse(family uint8, used map[netip.Addr]bool) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(diagRequest(family))
	err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(m []byte) bool {
		if addr, ok := localAddress(m); ok {
			used[addr] = true
		}
		return true
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.ENOENT) {
		return nil // they have changed meanwhile; or the kernel lacks inet_diag
	}
	return err
}

// localAddress reads that of a struct inet_diag_msg.
func localAddress(m []byte) (netip.Addr, bool) {
	const src = 8
	if len(m) < src+16 {
		return netip.Addr{}, false
	}
	if m[0] == unix.AF_INET {
		return netip.AddrFrom4([4]byte(m[src : src+4])), true
	}
	return netip.AddrFrom16([16]byte(m[src : src+16])).Unmap(), true
}

// flowsInUse asks conntrack where something is in it. Flows that are not
// rewritten end here, and are connections of this machine.
func flowsInUse(used map[netip.Addr]bool) error {
	count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil || strings.TrimSpace(string(count)) == "0" {
		return nil //nolint:nilerr // there is no conntrack
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list conntrack's entries: %w", err)
		}
		for _, f := range flows {
			to, _ := netip.AddrFromSlice(f.Forward.DstIP)
			from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
			if to.Unmap() != from.Unmap() && !ended(f.ProtoInfo) {
				used[to.Unmap()] = true
			}
		}
	}
	return nil
}

// ended says whether a connection of TCP is only remembered.
func ended(info netlink.ProtoInfo) bool {
	tcp, ok := info.(*netlink.ProtoInfoTCP)
	const timeWait, closed = 7, 8 // enum tcp_conntrack
	return ok && (tcp.State == timeWait || tcp.State == closed)
}
