package relay

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

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ports"
)

// machine is what one Apply has looked up so far.
type machine struct {
	devices map[string]int // interface indexes; 0: there is no such interface
	owners  ports.Owners   // nil: not read yet
	holders map[edge.Door]holders

	neighbours *neighbours
	vicinity   *vicinity // nil: not read yet
}

// holders are who was last seen to hold a port, outliving an Apply: while a
// port is taken every Apply tries it, and most are about something else.
type holders struct {
	phrase string
	seen   time.Time
}

const holdersAge = 2 * time.Second

func newMachine(known map[edge.Door]holders, n *neighbours) *machine {
	return &machine{devices: map[string]int{}, holders: known, neighbours: n}
}

func (m *machine) device(name string) int {
	index, ok := m.devices[name]
	if !ok {
		index = deviceIndex(name)
		m.devices[name] = index
	}
	return index
}

func (m *machine) portHolders(at edge.Door) string {
	if h, ok := m.holders[at]; ok && time.Since(h.seen) < holdersAge {
		return h.phrase
	}
	if m.owners == nil {
		m.owners = ports.ReadOwners()
	}
	h := holders{m.owners.Holders(at), time.Now()}
	m.holders[at] = h
	return h.phrase
}

// deviceIndex asks by ioctl: net.InterfaceByName reads a list of all
// interfaces for each name.
func deviceIndex(device string) int {
	req, err := unix.NewIfreq(device)
	if err != nil {
		return 0
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0
	}
	return int(req.Uint32())
}

// listen opens the socket. Its errors are for operators: they name what is in
// the way.
func listen(at edge.Listen, m *machine) (fds []int, addr netip.AddrPort, err error) {
	if at.Device != "" && m.device(at.Device) == 0 {
		return nil, netip.AddrPort{}, fmt.Errorf("listen on %s: there is no interface %s", at, at.Device)
	}
	door := edge.Door{Protocol: edge.TCP, Listen: at}
	fd, addr, err := listenTCP(at, false)
	if errors.Is(err, unix.EADDRINUSE) {
		err = m.neighbours.beside(door, err, func() (err error) {
			if fd, addr, err = listenTCP(at, true); err == nil {
				// It was for this moment.
				setOption(int32(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
			}
			return err
		})
	}
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("listen on %s: %w", at, explainListen(err, door, m))
	}
	return []int{fd}, addr, nil
}

func listenTCP(at edge.Listen, shared bool) (fd int, addr netip.AddrPort, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(bindToDevice(c, at.Device), prepare(c, shared))
	}}
	// Go listens on MPTCP sockets by default since 1.24; splice and TCP_INFO are
	// what relay relies on, and what it knows of them is true of TCP.
	lc.SetMultipathTCP(false)
	// Without an address Go opens [::] for both families, and 0.0.0.0 where
	// IPv6 is disabled. It would do so for 0.0.0.0 as well, if the network did
	// not say otherwise.
	network, host := "tcp", ""
	if addr := at.Addr.Unmap(); addr.Is4() {
		network, host = "tcp4", addr.String()
	} else if addr.Is6() {
		network, host = "tcp6", addr.String()
	}
	l, err := lc.Listen(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(int(at.Port))))
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	defer l.Close()
	a := l.Addr().(*net.TCPAddr).AddrPort()
	fd, err = duplicate(l.(*net.TCPListener))
	return fd, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
}

// boundTo is the address of a socket that was made elsewhere.
func boundTo(fd int) netip.AddrPort {
	switch sa, _ := unix.Getsockname(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	default:
		return netip.AddrPort{}
	}
}

// prepare sets what the sockets of accepted connections are to have: they
// inherit it. Shared, it can be bound beside a neighbour.
func prepare(c syscall.RawConn, shared bool) error {
	return c.Control(func(fd uintptr) {
		if shared {
			setOption(int32(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		setOption(int32(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		keepAlive(int32(fd))
	})
}

// duplicate takes a descriptor out of the hands of Go's own poller.
func duplicate(s syscall.Conn) (fd int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(from uintptr) {
		fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(controlErr, err)
}

// bindToDevice is what makes a zone a wall: Linux accepts a packet for any of
// its addresses on every interface, so that binding to an address keeps nobody
// out. Unprivileged since Linux 5.7.
func bindToDevice(c syscall.RawConn, device string) error {
	if device == "" {
		return nil
	}
	var bindErr error
	err := c.Control(func(fd uintptr) {
		bindErr = os.NewSyscallError("bind to device", unix.BindToDevice(int(fd), device))
	})
	return errors.Join(err, bindErr)
}

// explainListen turns the errors an operator meets into what is wrong.
func explainListen(err error, at edge.Door, m *machine) error {
	var call *os.SyscallError
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w%s", unix.EADDRINUSE, m.portHolders(at))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: %s is not an address of this machine", unix.EADDRNOTAVAIL, at.Listen.Addr)
	case errors.As(err, &call) && call.Syscall == "bind to device" && errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; binding to an interface needs CAP_NET_RAW before Linux 5.7", call)
	case errors.Is(err, unix.EACCES) && at.Listen.Port < 1024:
		return fmt.Errorf("%w; a port below 1024 needs CAP_NET_BIND_SERVICE", unix.EACCES)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
