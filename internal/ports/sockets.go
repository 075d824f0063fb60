package ports

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

type socket struct {
	addr   netip.AddrPort
	device int // that it is bound to; 0: none, or not known
	inode  string
}

// sockets are those that take what comes to some ports of a protocol: listeners,
// and of UDP those that are connected to nobody.
func sockets(protocol edge.Protocol, on func(port uint16) bool) []socket {
	// By way of thread-self: /proc/net is the namespace of the main thread.
	const dir = "/proc/thread-self/net/"
	if protocol == edge.SCTP {
		// The kernel would load SCTP if it were asked by netlink.
		return readEndpoints(dir+"sctp/eps", on)
	}
	all, err := diagSockets(protocol, on)
	if errors.Is(err, os.ErrNotExist) { // a kernel without inet_diag
		name := "tcp"
		if protocol == edge.UDP {
			name = "udp"
		}
		state := listenState(protocol)
		all = append(readSockets(dir+name, state, on), readSockets(dir+name+"6", state, on)...)
	}
	return all
}

const (
	tcpClose  = 7 // include/net/tcp_states.h; of a UDP socket: connected to nobody
	tcpListen = 10
)

func listenState(protocol edge.Protocol) int {
	if protocol == edge.UDP {
		return tcpClose
	}
	return tcpListen
}

// diagSockets asks the kernel, which also knows devices.
func diagSockets(protocol edge.Protocol, on func(port uint16) bool) (all []socket, err error) {
	number := uint8(unix.IPPROTO_TCP)
	if protocol == edge.UDP {
		number = unix.IPPROTO_UDP
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest{family, number, listenState(protocol)})
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(m []byte) bool {
			if len(m) >= diagMessageSize && on(binary.BigEndian.Uint16(m[4:])) {
				all = append(all, parseDiag(m))
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// diagRequest is struct inet_diag_req_v2: the sockets of a family and a
// protocol that are in a state.
type diagRequest struct {
	family, protocol uint8
	state            int
}

const (
	diagRequestSize = 56
	diagMessageSize = 72
)

func (diagRequest) Len() int { return diagRequestSize }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], 1<<r.state)
	return b
}

// parseDiag reads a struct inet_diag_msg.
func parseDiag(m []byte) socket {
	addr := netip.AddrFrom4([4]byte(m[8:]))
	if m[0] == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(m[8:])).Unmap()
	}
	return socket{
		addr:   netip.AddrPortFrom(addr, binary.BigEndian.Uint16(m[4:])),
		device: int(binary.NativeEndian.Uint32(m[40:])),
		inode:  strconv.FormatUint(uint64(binary.NativeEndian.Uint32(m[68:])), 10),
	}
}

// readSockets reads those that are in a state in a file of the form of
// /proc/net/tcp:
//
//	sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//	 0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 ...
func readSockets(path string, state int, on func(port uint16) bool) (all []socket) {
	fields(path, func(f []string) {
		if len(f) <= 9 {
			return
		}
		if st, err := strconv.ParseUint(f[3], 16, 8); err != nil || int(st) != state {
			return
		}
		host, port, _ := strings.Cut(f[1], ":")
		words, err := hex.DecodeString(host)
		if err != nil || len(words)%4 != 0 {
			return
		}
		// Words are printed as numbers of the machine.
		for i := 0; i < len(words); i += 4 {
			binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
		}
		addr, ok := netip.AddrFromSlice(words)
		n, err := strconv.ParseUint(port, 16, 16)
		if ok && err == nil && on(uint16(n)) {
			all = append(all, socket{addr: netip.AddrPortFrom(addr.Unmap(), uint16(n)), inode: f[9]})
		}
	})
	return all
}

// readEndpoints reads the listeners in a file of the form of
// /proc/net/sctp/eps. One that is bound to several addresses is several here.
//
//	 ENDPT     SOCK   STY SSTY HBKT LPORT   UID INODE LADDRS
//	d2c8c400 d2b03a00 2   10   29   9899      0 12345 10.0.0.1 0000:0000:0000:0000:0000:0000:0000:0001
func readEndpoints(path string, on func(port uint16) bool) (all []socket) {
	fields(path, func(f []string) {
		if len(f) <= 8 || f[3] != strconv.Itoa(tcpListen) {
			return
		}
		port, err := strconv.ParseUint(f[5], 10, 16)
		if err != nil || !on(uint16(port)) {
			return
		}
		for _, text := range f[8:] {
			if addr, err := netip.ParseAddr(text); err == nil {
				all = append(all, socket{addr: netip.AddrPortFrom(addr.Unmap(), uint16(port)), inode: f[7]})
			}
		}
	})
	return all
}

func fields(path string, line func([]string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line(strings.Fields(lines.Text()))
	}
}
