package vip

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/nft"
)

// Lacking says what this machine lacks for addresses of pools. It changes
// nothing. Without the nft command the error is nft.ErrNotInstalled, without
// CAP_NET_ADMIN it is nft.ErrNotPermitted.
func Lacking(ctx context.Context) (all []nft.Lack, err error) {
	_, err = command(ctx, replacement(layout()), "--check", "-f", "-")
	switch {
	case errors.Is(err, nft.ErrNotInstalled), errors.Is(err, nft.ErrNotPermitted):
		return nil, fmt.Errorf("vip: %w", err)
	case err != nil:
		all = append(all, nft.Lack{What: err.Error(), Needs: "nftables 1.0.6, and Linux 5.9 with CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP and CONFIG_NFT_REJECT"})
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		all = append(all, nft.Lack{What: "the right to ask by ARP and NDP who has an address", Needs: "CAP_NET_RAW"})
	case err != nil:
		all = append(all, nft.Lack{What: fmt.Sprintf("packet sockets (%v)", err), Needs: "a kernel with CONFIG_PACKET"})
	default:
		_ = unix.Close(fd)
	}
	return all, nil
}
