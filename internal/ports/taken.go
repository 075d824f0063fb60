package ports

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Taken returns the doors whose packets another program listens for, with the
// words of the error that listening there would end in: it is for doors that
// are opened without a socket, and would take packets away from who has one. A
// door that has an address takes those that come to the address, which never were
// of a program that listens at all addresses: it is one of a pool, and what comes
// to it is for doors alone.
// This process's own sockets do not count, nor do those of the processes ours.
func Taken(doors []edge.Door, ours ...int) map[edge.Door]string {
	wanted := map[edge.Protocol]*[1 << 16]bool{}
	for _, d := range doors {
		if wanted[d.Protocol] == nil {
			wanted[d.Protocol] = new([1 << 16]bool)
		}
		wanted[d.Protocol][d.Listen.Port] = true
	}
	type port struct {
		protocol edge.Protocol
		number   uint16
	}
	found := map[port][]socket{}
	for protocol, ports := range wanted {
		for _, s := range sockets(protocol, func(port uint16) bool { return ports[port] }) {
			at := port{protocol, s.addr.Port()}
			found[at] = append(found[at], s)
		}
	}
	if len(found) == 0 {
		return nil
	}
	devices := deviceIndexes()
	getters := map[edge.Door][]string{}
	for _, d := range doors {
		for _, s := range found[port{d.Protocol, d.Listen.Port}] {
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
	case at.Addr.IsValid():
		return addr == at.Addr.Unmap()
	case addr.IsUnspecified():
		return true
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
