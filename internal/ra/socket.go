package ra

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// errNoAddress is an interface without IPv6, or one whose link-local address is
// not known yet to be nobody else's.
var errNoAddress = errors.New("it has no link-local IPv6 address")

// socket sends advertisements on one interface, and hears solicitations.
type socket struct {
	conn  *ipv6.PacketConn
	raw   net.PacketConn
	link  *net.Interface
	local netip.Addr // the source of all advertisements (RFC 4861 §4.2)
}

func open(device string) (*socket, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, unwrapped(err)
	}
	local, err := linkLocal(link)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), device) })
		return errors.Join(err, failed)
	}}
	raw, err := lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, unwrapped(err)
	}
	s := &socket{conn: ipv6.NewPacketConn(raw), raw: raw, link: link, local: local}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	// Neighbours take nothing else than hop limit 255: no router has passed it on.
	for _, err := range []error{
		s.conn.SetICMPFilter(&filter),
		s.conn.SetMulticastHopLimit(255),
		s.conn.SetHopLimit(255),
		s.conn.SetMulticastLoopback(false),
		s.conn.SetMulticastInterface(link),
		s.conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		s.conn.JoinGroup(link, &net.IPAddr{IP: allRouters.AsSlice()}),
	} {
		if err != nil {
			_ = raw.Close()
			return nil, unwrapped(err)
		}
	}
	return s, nil
}

// unwrapped is the kernel's word alone: who reads it knows the interface.
func unwrapped(err error) error {
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

func linkLocal(link *net.Interface) (netip.Addr, error) {
	addrs, err := link.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read its addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.Is6() && !addr.Is4In6() && addr.IsLinkLocalUnicast() {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, errNoAddress
}

func (s *socket) close() { _ = s.raw.Close() }

func (s *socket) send(m message, to netip.Addr) error {
	m.source = s.link.HardwareAddr
	_, err := s.conn.WriteTo(m.encode(), &ipv6.ControlMessage{Src: s.local.AsSlice(), IfIndex: s.link.Index, HopLimit: 255},
		// Not its name: which interface that was, package net remembers for a minute.
		&net.IPAddr{IP: to.AsSlice(), Zone: strconv.Itoa(s.link.Index)})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EINVAL) {
		return errNoAddress // not yet: it is tried whether somebody else has it
	}
	return unwrapped(err)
}

// receive returns who asks, until the socket is closed. Whatever else comes is
// passed over.
func (s *socket) receive() (from netip.Addr, err error) {
	b := make([]byte, 1500)
	for {
		n, control, source, err := s.conn.ReadFrom(b)
		if err != nil {
			return netip.Addr{}, unwrapped(err)
		}
		ip, ok := source.(*net.IPAddr)
		if !ok || control == nil || control.IfIndex != s.link.Index {
			continue
		}
		from, _ := netip.AddrFromSlice(ip.IP)
		if checkSolicitation(b[:n], from, control.HopLimit) == nil {
			return from, nil
		}
	}
}

// patience is how long an interface may be without a link-local address before
// that is an error: for a second or two it is looked whether somebody has it.
const patience = 5 * time.Second
