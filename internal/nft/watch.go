package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watch calls lost each time that something is taken out of a table of the family
// inet or arp, by whom ever: it is not ours alone to flush. It returns when ctx ends,
// or when the kernel does not tell. Since messages can be lost too, it is no substitute for
// Apply once in a while.
func Watch(ctx context.Context, table string, lost func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nft: watch: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		return fmt.Errorf("nft: watch: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	buffer := make([]byte, 64<<10)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // messages were dropped
			lost()
			continue
		case err != nil:
			return fmt.Errorf("nft: watch: %w", err)
		}
		messages, _ := syscall.ParseNetlinkMessage(buffer[:n])
		if slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return isLoss(m, table) }) {
			lost()
		}
	}
}

const nfgenmsg = 4 // bytes of struct nfgenmsg, which begins with the family

// isLoss says whether a message is about something of the table that was deleted.
func isLoss(m syscall.NetlinkMessage, table string) bool {
	switch m.Header.Type {
	case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE,
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN,
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE:
	default:
		return false
	}
	// One of the attributes is the name of the table. Should it be that of another,
	// whose name ends like it, a comparison will find nothing to do.
	return len(m.Data) > nfgenmsg && (m.Data[0] == unix.NFPROTO_INET || m.Data[0] == unix.NFPROTO_ARP) &&
		bytes.Contains(m.Data[nfgenmsg:], []byte(table+"\x00"))
}
