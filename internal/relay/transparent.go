package relay

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// seesClient says whether a connection to the backend can come from the
// client's own address.
func seesClient(client, backend netip.Addr) bool {
	return client.Is4() == backend.Is4() && !client.IsLoopback() && client != backend
}

// bindTransparent has a socket connect from the client's address.
func bindTransparent(fd int32, client netip.Addr) unix.Errno {
	return unix.ENOSYS
}
