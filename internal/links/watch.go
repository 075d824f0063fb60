package links

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// An interface that comes up sends several messages; one look does for all.
	settle = 20 * time.Millisecond
	// resubscribe is how long it waits before it listens again.
	resubscribe = time.Second
	// reread is the net below the notifications: there are none for some sysctls.
	reread = 30 * time.Second
	// netconf4 and netconf6 are RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF: sysctls
	// of interfaces, as far as the kernel tells of them.
	netconf4, netconf6 = 24, 25
)

// Watch calls changed when Apply may have something to do, until ctx ends.
func (a *Applier) Watch(ctx context.Context, changed func()) error {
	heard := make(chan struct{}, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			if err := listen(ctx, heard); ctx.Err() == nil {
				a.log.Warn("interface notifications interrupted", "err", err)
			}
			if !pause(ctx, resubscribe) {
				return
			}
			signal(heard)
		}
	}()
	defer func() { <-stopped }()
	again := time.NewTicker(reread)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		case <-heard:
			if !pause(ctx, settle) {
				return ctx.Err()
			}
		}
		changed()
	}
}

func listen(ctx context.Context, heard chan<- struct{}) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, netconf4, netconf6)
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	signal(heard) // between the last look and the subscription nothing was heard
	for {
		messages, _, err := s.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
			signal(heard)
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case slices.ContainsFunc(messages, matters):
			signal(heard)
		}
	}
}

// matters says whether a message is about something that gatehouse keeps. Of routes,
// which on a router come and go by the thousand, those of its own that are gone are.
func matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE:
		return false
	case unix.RTM_DELROUTE: // struct rtmsg
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[4] == unix.RT_TABLE_MAIN && m.Data[5] == protocol
	default:
		return true
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

// solicit asks routers to advertise where that is listened to from now on: they
// would otherwise in their own time, which is minutes. (RFC 4861 §6.3.7)
func (a *Applier) solicit(changed []string, have *machine) {
	for _, name := range changed {
		name, ok := strings.CutSuffix(name, ".accept_ra=2")
		device := have.device(strings.ReplaceAll(strings.TrimPrefix(name, "net.ipv6.conf."), "/", "."))
		if !ok || device == nil || !device.Up {
			continue
		}
		if err := solicitRouters(device.Index); err != nil {
			a.log.Debug("no router solicited", "interface", device.Name, "err", err)
		}
	}
}

func solicitRouters(index int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index); err != nil {
		return err
	}
	allRouters := [16]byte{0: 0xff, 1: 0x02, 15: 2}
	// A solicitation without options; the kernel fills in the checksum.
	return unix.Sendto(fd, []byte{133, 0, 0, 0, 0, 0, 0, 0}, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: allRouters, ZoneId: uint32(index)})
}
