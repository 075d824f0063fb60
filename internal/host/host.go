// Package host observes the machine: its network interfaces, their addresses,
// and whether they answer ARP for each other; it leaves what follows from a
// change to who asks.
//
//	o := host.New(log)
//	go o.Run(ctx)
//	for range o.Changed() {
//		interfaces, err := o.Snapshot()
//		...
//	}
//
// It owns the routing rules and routes of a Delivery and the routes to pods
// (Routes), known by their protocol number, and changes nothing else.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	// The net below the notifications: they can be lost, and there is none for
	// arp_ignore.
	rereadInterval = 30 * time.Second
	resubscribe    = time.Second
	// An interface that comes up sends several messages; one look does for all.
	settle = 20 * time.Millisecond
)

// Observer sees the interfaces of the network namespace that its methods are
// called in.
type Observer struct {
	log     *slog.Logger
	changed chan struct{}
}

// New returns an Observer. It starts nothing.
func New(log *slog.Logger) *Observer {
	return &Observer{log: log, changed: make(chan struct{}, 1)}
}

// Changed is signalled when Snapshot would return something else than when it
// was signalled last. Several changes may be one signal.
func (o *Observer) Changed() <-chan struct{} { return o.changed }

// Snapshot returns the interfaces as they are now, sorted by name. An
// interface is up when it is set up and can pass packets: a pulled cable is
// down.
func (o *Observer) Snapshot() ([]edge.Interface, error) {
	links, err := retryInterrupted(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	ignoreAll := arpIgnore("all")
	interfaces := make([]edge.Interface, 0, len(links))
	for _, link := range links {
		a := link.Attrs()
		const running = unix.IFF_UP | unix.IFF_RUNNING
		interfaces = append(interfaces, edge.Interface{
			Name:  a.Name,
			Index: a.Index,
			Up:    a.RawFlags&running == running,
			Addrs: addrsOf(a.Index, addrs),
			// The kernel takes the larger of the two (ip-sysctl.rst, arp_ignore).
			AnswersForOthers: a.RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK) == 0 &&
				max(ignoreAll, arpIgnore(a.Name)) == 0,
		})
	}
	slices.SortFunc(interfaces, func(a, b edge.Interface) int { return cmp.Compare(a.Name, b.Name) })
	return interfaces, nil
}

// retryInterrupted reads a list again that the kernel has changed while it was
// read: what came may lack an entry that was there all the time.
func retryInterrupted[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// addrsOf are the addresses of an interface. Those that are on their way out come
// last: a provider that gives another IPv6 prefix has the old one deprecated for
// hours, in which it leads nowhere. One that a neighbour was found to have
// (IFA_F_DADFAILED) is not this machine's.
func addrsOf(index int, addrs []netlink.Addr) []netip.Prefix {
	var preferred, deprecated []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || a.LinkIndex != index || ip.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_DADFAILED != 0 {
			continue
		}
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip, bits); a.Flags&unix.IFA_F_DEPRECATED == 0 {
			preferred = append(preferred, p)
		} else {
			deprecated = append(deprecated, p)
		}
	}
	return append(sortedPrefixes(preferred), sortedPrefixes(deprecated)...)
}

func sortedPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(prefixes)
}

// arpIgnore reads a setting of an interface, or of "all". It is 0, the
// kernel's default, where there is no such file.
func arpIgnore(name string) int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/arp_ignore")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// Run watches until ctx ends, and signals Changed.
func (o *Observer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard := make(chan struct{}, 1)
	stopped := make(chan struct{})
	go o.listenAlways(ctx, heard, stopped)
	defer func() { cancel(); <-stopped }()

	reread := time.NewTicker(rereadInterval)
	defer reread.Stop()
	var last []edge.Interface
	failing := false
	for {
		now, err := o.Snapshot()
		switch {
		case err != nil && !failing:
			o.log.Error("observing interfaces failed", "err", err)
		case err == nil && !reflect.DeepEqual(now, last):
			last = now
			signal(o.changed)
		}
		failing = err != nil

		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-reread.C:
		case <-heard:
			if !pause(ctx, settle) {
				return ctx.Err()
			}
		}
	}
}

// listenAlways subscribes to the kernel's messages, and again when that fails.
func (o *Observer) listenAlways(ctx context.Context, heard, stopped chan<- struct{}) {
	defer close(stopped)
	for {
		err := listen(ctx, heard)
		if ctx.Err() != nil {
			return
		}
		o.log.Warn("interface notifications interrupted", "err", err)
		// What happened in between was not heard.
		if !pause(ctx, resubscribe) {
			return
		}
		signal(heard)
	}
}

// listen passes on that something about links or addresses has happened. It
// does not look at what: the lists are the truth, and are read anyway.
func listen(ctx context.Context, heard chan<- struct{}) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, socket.Close)
	defer stop()
	// Once more from here on: between a snapshot and the subscription nothing
	// was heard.
	signal(heard)
	for {
		_, _, err := socket.Receive()
		// ENOBUFS: messages were dropped, and the socket goes on.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("receive: %w", err)
		}
		signal(heard)
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
