package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Claim opens a transparent socket that nobody uses, for TransparentSockets to
// find as long as it is open: who keeps one says that a Delivery is needed,
// whether or not there is a connection. It goes with its process, however that
// ends. Without CAP_NET_ADMIN or CAP_NET_RAW the error is ErrNotPermitted.
func Claim() (io.Closer, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a transparent socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, refused("open a transparent socket", err)
	}
	return os.NewFile(uintptr(fd), "claim"), nil
}

// TransparentSockets says whether anybody in this network namespace has a
// transparent socket that is no listener: another process of ours, or a
// connection that has outlived its frontend.
func TransparentSockets() (bool, error) {
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			found, err := transparentSockets(family, protocol)
			if found || err != nil {
				return found, err
			}
		}
	}
	return false, nil
}

func transparentSockets(family, protocol uint8) (found bool, err error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(diagRequest{family, protocol})
	err = req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(m []byte) bool {
		found = found || isTransparent(m)
		return !found
	})
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("the kernel lacks inet_diag: %w", err)
	}
	if err != nil {
		return false, fmt.Errorf("list sockets: %w", err)
	}
	return found, nil
}

// diagRequest is struct inet_diag_req_v2: all sockets of a family and a
// protocol but those that listen. UDP sockets are closed or established to it.
type diagRequest struct{ family, protocol uint8 }

const (
	diagRequestSize = 56
	diagMessageSize = 72 // struct inet_diag_msg

	tcpListen = 10 // include/net/tcp_states.h
)

func (diagRequest) Len() int { return diagRequestSize }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], ^uint32(1<<tcpListen))
	return b
}

const (
	diagSockopt = 22 // INET_DIAG_SOCKOPT, since Linux 5.10

	// The first byte of struct inet_diag_sockopt has the bit in sixth place,
	// counted from the end that the machine's bit fields begin at.
	transparentLittle, transparentBig = 1 << 5, 1 << 2
)

func isTransparent(m []byte) bool {
	if len(m) < diagMessageSize {
		return false
	}
	attributes, err := nl.ParseRouteAttr(m[diagMessageSize:])
	if err != nil {
		return false
	}
	bit := byte(transparentLittle)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		bit = transparentBig
	}
	for _, a := range attributes {
		if a.Attr.Type == diagSockopt && len(a.Value) > 0 {
			return a.Value[0]&bit != 0
		}
	}
	return false
}
