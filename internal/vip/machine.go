package vip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An address of ours is known by these two, which nothing else depends on:
// there is no route that the metric is for. The protocol (ip address show proto
// 91) is kept by Linux 5.18 and newer, the metric since 4.18. The number is that
// of the routes of package host.
const (
	protocol = 91
	metric   = 9191
)

// attributeProto is IFA_PROTO (linux/if_addr.h), which x/sys does not have.
const attributeProto = 11

// link is an interface.
type link struct {
	index   int
	mac     string // six bytes; empty: it is no Ethernet, or there is no ARP on it
	up      bool
	carrier bool
}

// place is where an address is.
type place struct {
	index int
	ours  bool
}

// machine is what the kernel has.
type machine struct {
	links map[string]link
	names map[int]string
	where map[netip.Addr][]place
	macs  map[string]bool // of its own
}

// readMachine reads it all.
func readMachine() (machine, error) {
	m := machine{links: map[string]link{}, names: map[int]string{}, where: map[netip.Addr][]place{}, macs: map[string]bool{}}
	links, err := again(netlink.LinkList)
	if err != nil {
		return m, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		found := link{index: a.Index, up: a.RawFlags&unix.IFF_UP != 0, carrier: a.RawFlags&unix.IFF_RUNNING != 0}
		if a.EncapType == "ether" && len(a.HardwareAddr) == hardwareBytes && a.RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK) == 0 {
			found.mac = string(a.HardwareAddr)
			m.macs[found.mac] = true
		}
		m.links[a.Name], m.names[a.Index] = found, a.Name
	}
	addresses, err := again(listAddresses)
	if err != nil {
		return m, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		m.where[a.addr] = append(m.where[a.addr], a.place)
	}
	return m, nil
}

// again reads a list once more that has changed while it was read.
func again[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// address is an address of an interface.
type address struct {
	addr netip.Addr
	place
}

func listAddresses() ([]address, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	var all []address
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(m []byte) bool {
		if a, ok := parseAddress(m); ok {
			all = append(all, a)
		}
		return true
	})
	return all, err
}

// parseAddress reads a message of RTM_NEWADDR or RTM_DELADDR. (rtnetlink(7))
func parseAddress(m []byte) (address, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}, false
	}
	head := nl.DeserializeIfAddrmsg(m)
	attributes, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return address{}, false
	}
	var proto byte
	var priority uint32
	a := address{place: place{index: int(head.Index)}}
	for _, attribute := range attributes {
		switch v := attribute.Value; attribute.Attr.Type {
		case unix.IFA_LOCAL:
			a.addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS: // of a point-to-point link it is the other end
			if !a.addr.IsValid() {
				a.addr, _ = netip.AddrFromSlice(v)
			}
		case unix.IFA_RT_PRIORITY:
			if len(v) == 4 {
				priority = binary.NativeEndian.Uint32(v)
			}
		case attributeProto:
			if len(v) == 1 {
				proto = v[0]
			}
		}
	}
	a.ours = a.addr.IsValid() && int(head.Prefixlen) == a.addr.BitLen() && (proto == protocol || proto == 0 && priority == metric)
	return a, a.addr.IsValid()
}

// changer adds and removes addresses by one socket.
type changer struct{ handle *nl.SocketHandle }

func newChanger() (*changer, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to nothing
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 10}); err != nil {
		s.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &changer{&nl.SocketHandle{Socket: s}}, nil
}

func (c *changer) close() { c.handle.Close() }

// errTaken is why an address cannot be added: it is there.
var errTaken = errors.New("somebody else has put it there")

// add puts an address on an interface. The scope is that of the host: what is of
// the scope of a link is the source of this machine's own connections by routes
// to a link that name no other (fib_info_update_nhc_saddr). Of IPv6 it is
// deprecated, and nothing looks for duplicates once more.
func (c *changer) add(addr netip.Addr, index int) error {
	head := messageFor(addr, index)
	attributes := []*nl.RtAttr{
		nl.NewRtAttr(unix.IFA_RT_PRIORITY, nl.Uint32Attr(metric)),
		nl.NewRtAttr(attributeProto, []byte{protocol}),
	}
	if addr.Is4() {
		head.Scope = unix.RT_SCOPE_HOST
	} else {
		forever := make([]byte, 16) // struct ifa_cacheinfo: preferred, valid, two stamps
		binary.NativeEndian.PutUint32(forever[4:], ^uint32(0))
		attributes = append(attributes,
			nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)),
			nl.NewRtAttr(unix.IFA_CACHEINFO, forever))
	}
	err := c.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, head, addr, attributes...)
	switch {
	case errors.Is(err, unix.EEXIST):
		return errTaken
	case addr.Is6() && errors.Is(err, unix.EACCES):
		return errors.New("IPv6 is disabled there (net.ipv6.conf.*.disable_ipv6)")
	case errors.Is(err, unix.EPERM):
		return errors.New("it takes CAP_NET_ADMIN")
	}
	return err
}

// remove takes an address off an interface.
func (c *changer) remove(addr netip.Addr, index int) error {
	err := c.do(unix.RTM_DELADDR, unix.NLM_F_ACK, messageFor(addr, index), addr)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil // gone already
	}
	return err
}

func messageFor(addr netip.Addr, index int) *nl.IfAddrmsg {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	head := nl.NewIfAddrmsg(family)
	head.Prefixlen, head.Index = uint8(addr.BitLen()), uint32(index)
	return head
}

func (c *changer) do(kind, flags int, head *nl.IfAddrmsg, addr netip.Addr, attributes ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.handle}
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, addr.AsSlice()))
	for _, a := range attributes {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// listen calls changed when an interface has changed, an address has left one,
// or others have put one there that concerns says matters. It returns when ctx
// ends, or when the kernel does not tell.
func listen(ctx context.Context, concerns func(netip.Addr) bool, changed func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer s.Close()
	// There is a message for each address that is added here.
	_ = s.SetReceiveBufferSize(4<<20, false)
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	for {
		messages, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // some were lost
			changed()
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		}
		for _, m := range messages {
			if matters(m, concerns) {
				changed()
				break
			}
		}
	}
}

func matters(m syscall.NetlinkMessage, concerns func(netip.Addr) bool) bool {
	if m.Header.Type != unix.RTM_NEWADDR {
		return true
	}
	a, ok := parseAddress(m.Data)
	return ok && !a.ours && concerns(a.addr)
}
