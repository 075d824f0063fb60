package ports

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Taken returns the doors whose packets another program listens for, with the
// words of the error that listening there would end in: it is for doors that
// are opened without a socket, and would take packets away from who has one.
// This process's own sockets do not count, nor do those of the processes ours.
func Taken(doors []edge.Door, ours ...int) map[edge.Door]string {
	listening := map[edge.Protocol]map[uint16][]socket{}
	var devices map[string]int // nil: not read yet
	getters := map[edge.Door][]string{}
	for _, d := range doors {
		ports, ok := listening[d.Protocol]
		if !ok {
			ports = map[uint16][]socket{}
			for _, s := range sockets(d.Protocol) {
				ports[s.addr.Port()] = append(ports[s.addr.Port()], s)
			}
			listening[d.Protocol] = ports
		}
		for _, s := range ports[d.Listen.Port] {
			if s.device != 0 && devices == nil {
				devices = deviceIndexes()
			}
			if s.gets(d.Listen, devices[d.Listen.Device]) {
				getters[d] = append(getters[d], s.inode)
			}
		}
	}
	if len(getters) == 0 {
		return nil
	}
	// The most likely ones first: reading those of all others takes longer.
	own := socketsOf("/proc/self")
	for _, pid := range ours {
		own = append(own, socketsOf("/proc/"+strconv.Itoa(pid))...)
	}
	isOwn := make(map[string]bool, len(own))
	for _, inode := range own {
		isOwn[inode] = true
	}
	var owners Owners // nil: not read yet
	taken := map[edge.Door]string{}
	for d, inodes := range getters {
		others := slices.DeleteFunc(inodes, func(inode string) bool { return isOwn[inode] })
		if len(others) == 0 {
			continue
		}
		if owners == nil {
			owners = ReadOwners()
		}
		taken[d] = fmt.Sprintf("listen on %s: %v%s", d.Listen, unix.EADDRINUSE, owners.held(d.Listen.Port, others))
	}
	return taken
}

// gets says whether packets for a door with that device come to the socket. An
// address is one of this machine, which answers for it on every interface; but
// packets to loopback, to groups and to everybody are for no door.
func (s socket) gets(at edge.Listen, device int) bool {
	addr := s.addr.Addr()
	switch {
	case at.Device != "" && s.device != 0 && s.device != device:
		return false
	case addr.IsUnspecified():
		return !at.Addr.IsValid() || addr.Is6() || at.Addr.Unmap().Is4()
	case at.Addr.IsValid():
		return addr == at.Addr.Unmap()
	default:
		return !addr.IsLoopback() && !addr.IsMulticast() && addr != broadcast
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func deviceIndexes() map[string]int {
	indexes := map[string]int{}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		indexes[i.Name] = i.Index
	}
	return indexes
}

// sockets are those that take what comes to a port of the protocol: listeners,
// and of UDP those that are connected to nobody.
func sockets(protocol edge.Protocol) []socket {
	// By way of thread-self: /proc/net is the namespace of the main thread.
	const dir = "/proc/thread-self/net/"
	if protocol == edge.SCTP {
		// The kernel would load SCTP if it were asked by netlink.
		return readEndpoints(dir + "sctp/eps")
	}
	all, err := diagSockets(protocol)
	if errors.Is(err, os.ErrNotExist) { // a kernel without inet_diag
		name := "tcp"
		if protocol == edge.UDP {
			name = "udp"
		}
		all = append(readSockets(dir+name, listenState(protocol)), readSockets(dir+name+"6", listenState(protocol))...)
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
