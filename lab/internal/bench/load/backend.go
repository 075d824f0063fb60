package load

import (
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// The backend's ports, all outside the range that clients' ports are taken from.
const (
	EchoPort   = 801 // sends back what it gets
	SourcePort = 802 // sends without end
	SinkPort   = 803 // takes without end
	UDPPort    = 804 // sends datagrams back
	HelloPort  = 805 // answers a ClientHello, at HelloBackends of its addresses
	NamePort   = 806 // the same, where who is in front chooses the address by the server name
	NobodyPort = 807 // refuses
)

// HelloBackends is how many of the backend's addresses answer a ClientHello, each as another backend.
const HelloBackends = 3

// kind is what the descriptor that an event is about is for.
type kind uint8

const (
	unused kind = iota
	listener
	echo
	sending
	taking
	datagrams
	hellos
)

type peer struct {
	kind      kind
	accepts   kind // of a listener: what its connections are
	id        byte // of hellos, and a listener for them: which backend it is
	sum       uint32
	got, look uint64
}

type backend struct {
	*poller
	peers []peer // by descriptor
	count *Counters
	buf   []byte
	src   *source
	snk   *sink
	udp   *batch
}

// Backend serves all ports until it is killed; datagrams at each of the addresses, connections at all of them.
func Backend(addrs []netip.Addr, count *Counters) error {
	alone()
	p, err := newPoller()
	if err != nil {
		return err
	}
	b := &backend{poller: p, peers: make([]peer, 1<<17), count: count, buf: make([]byte, 64<<10), snk: newSink(count), udp: newBatch(64)}
	if b.src, err = newSource(); err != nil {
		return err
	}
	for port, k := range map[int]kind{EchoPort: echo, SourcePort: sending, SinkPort: taking} {
		if err := b.listen(&unix.SockaddrInet4{Port: port}, peer{kind: listener, accepts: k}); err != nil {
			return err
		}
	}
	for i, a := range addrs[:HelloBackends] {
		for _, port := range []uint16{HelloPort, NamePort} {
			if err := b.listen(sockaddr(netip.AddrPortFrom(a, port)), peer{kind: listener, accepts: hellos, id: byte(i)}); err != nil {
				return err
			}
		}
	}
	for _, a := range addrs {
		if err := b.listenUDP(netip.AddrPortFrom(a, UDPPort)); err != nil {
			return err
		}
	}
	for {
		for _, e := range b.wait(-1) {
			b.serve(int(e.Fd), e.Events)
		}
	}
}

func (b *backend) listen(at *unix.SockaddrInet4, p peer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, at); err != nil {
		return fmt.Errorf("bind to port %d: %w", at.Port, err)
	}
	noDelay(fd) // accepted connections inherit it
	if err := unix.Listen(fd, 65535); err != nil {
		return fmt.Errorf("listen at port %d: %w", at.Port, err)
	}
	b.peers[fd] = p
	if errno := b.add(fd, fd, unix.EPOLLIN); errno != 0 {
		return errno
	}
	return nil
}

func (b *backend) serve(fd int, events uint32) {
	k := &b.peers[fd]
	var alive bool
	var errno syscall.Errno
	switch k.kind {
	case listener:
		b.accept(fd, k.accepts, k.id)
		return
	case datagrams:
		b.udp.echo(fd, b.count)
		return
	case echo:
		alive, errno = b.echo(fd, events)
	case sending:
		if alive = events&closed == 0; alive {
			errno = b.src.fill(fd)
		}
	case taking:
		alive, errno = b.snk.drain(fd, &k.got, &k.look)
	case hellos:
		alive, errno = b.hello(fd, k, events)
	default:
		return
	}
	// A reset is how the bulk columns end; what it means for an echo, the client has seen and counted.
	if !alive || errno != 0 {
		if k.kind == sending {
			b.src.close(fd)
		}
		k.kind = unused
		closeFD(fd)
	}
}

func (b *backend) accept(fd int, accepts kind, id byte) {
	events := uint32(in)
	if accepts == sending {
		events = inOut
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			if errno != unix.EAGAIN && errno != unix.ECONNABORTED {
				b.count.Errors++
				complain("accept: %v", errno)
			}
			return
		}
		c := int(n)
		if c >= len(b.peers) {
			b.count.Errors++
			closeFD(c)
			continue
		}
		b.peers[c] = peer{kind: accepts, id: id}
		if accepts == sending {
			if err := b.src.open(c); err != nil {
				b.count.Errors++
				complain("%v", err)
			}
		}
		if errno := b.add(c, c, events); errno != 0 {
			b.count.Errors++
			complain("epoll_ctl: %v", errno)
		}
	}
}

func (b *backend) echo(fd int, events uint32) (bool, syscall.Errno) {
	for {
		n, errno := recv(fd, b.buf, 0)
		if errno == unix.EAGAIN {
			return true, 0
		}
		if errno != 0 || n == 0 {
			return false, errno
		}
		sent, errno := send(fd, b.buf[:n])
		if errno != 0 || sent != n {
			return false, errno
		}
		b.count.Ops++
		// An edge is reported once: what ended together with the data has to be noticed now.
		if n < len(b.buf) && events&closed == 0 {
			return true, 0
		}
	}
}
