package dhcp6

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	serverPort = 547
	clientPort = 546

	// What could not be opened is tried again after this time.
	retryInterval = time.Second
)

// servers is All_DHCP_Relay_Agents_and_Servers (RFC 8415 §7.1).
var servers = netip.MustParseAddr("ff02::1:2")

// Link is what is told on an interface, and which one that is.
type Link struct {
	Index   int // of the interface that has the name now
	Content Content
}

// Status is what was done on an interface.
type Status struct {
	Requests, Replies uint64
	Error             string // why nobody is answered
}

// Options say what a Server does beside its work.
type Options struct {
	// Changed is called when Status says another error; nil: nobody is.
	Changed func()
}

// Server answers on interfaces. Its methods may be called at any time.
type Server struct {
	log     *slog.Logger
	changed func()

	mu      sync.Mutex
	workers map[string]*worker
}

type worker struct {
	device string
	index  int
	cancel context.CancelFunc
	done   chan struct{}
	report func()

	mu      sync.Mutex
	content Content
	status  Status
}

// New makes a Server, which does nothing before Apply.
func New(log *slog.Logger, o Options) *Server {
	s := &Server{log: log, changed: o.Changed, workers: map[string]*worker{}}
	if s.changed == nil {
		s.changed = func() {}
	}
	return s
}

// Apply answers on these interfaces, by name, and on no others.
func (s *Server) Apply(ctx context.Context, links map[string]Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for device, w := range s.workers {
		if link, wanted := links[device]; !wanted || link.Index != w.index {
			s.endLocked(w)
		}
	}
	for device, link := range links {
		if w := s.workers[device]; w != nil {
			w.mu.Lock()
			w.content = link.Content
			w.mu.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		w := &worker{device: device, index: link.Index, cancel: cancel, done: make(chan struct{}), report: s.changed, content: link.Content}
		s.workers[device] = w
		go w.run(ctx)
		s.log.Info("stateless DHCPv6", "interface", device)
	}
}

func (s *Server) endLocked(w *worker) {
	w.cancel()
	<-w.done
	delete(s.workers, w.device)
	s.log.Info("stateless DHCPv6 ended", "interface", w.device)
}

// Stop ends all. Apply begins again.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		s.endLocked(w)
	}
}

// Status is what was done, by interface, where it answers now.
func (s *Server) Status() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Status, len(s.workers))
	for device, w := range s.workers {
		w.mu.Lock()
		all[device] = w.status
		w.mu.Unlock()
	}
	return all
}

func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	for {
		err := w.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		w.failed(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryInterval):
		}
	}
}

func (w *worker) failed(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	w.mu.Lock()
	news := w.status.Error != text
	w.status.Error = text
	w.mu.Unlock()
	if news {
		w.report()
	}
}

func (w *worker) serve(ctx context.Context) error {
	link, err := net.InterfaceByName(w.device)
	if err != nil {
		return unwrapped(err)
	}
	conn, err := listen(ctx, link)
	if err != nil {
		return unwrapped(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	w.failed(nil)
	b := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return unwrapped(err)
		}
		if !from.Addr().IsLinkLocalUnicast() {
			continue // no neighbour
		}
		w.mu.Lock()
		content := w.content
		w.mu.Unlock()
		reply, err := answer(b[:n], link.HardwareAddr, content)
		if errors.Is(err, errNotAsked) {
			continue
		}
		// To where clients listen, whatever port it came from. The zone is not a name:
		// which interface that was, package net remembers for a minute.
		to := netip.AddrPortFrom(from.Addr().WithZone(strconv.Itoa(link.Index)), clientPort)
		replied := err == nil
		if replied {
			_, err = conn.WriteToUDPAddrPort(reply, to)
			replied = err == nil
		}
		w.mu.Lock()
		w.status.Requests++
		if replied {
			w.status.Replies++
		}
		w.mu.Unlock()
	}
}

// listen opens the port on one interface. Another process may have it too: that
// is how one takes another's place.
func listen(ctx context.Context, link *net.Interface) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.BindToDevice(int(fd), link.Name),
			)
		})
		return errors.Join(err, failed)
	}}
	packets, err := lc.ListenPacket(ctx, "udp6", net.JoinHostPort("::", strconv.Itoa(serverPort)))
	if err != nil {
		return nil, err
	}
	if err := ipv6.NewPacketConn(packets).JoinGroup(link, &net.UDPAddr{IP: servers.AsSlice()}); err != nil {
		_ = packets.Close()
		return nil, err
	}
	return packets.(*net.UDPConn), nil
}

// unwrapped is the kernel's word alone: who reads it knows the interface.
func unwrapped(err error) error {
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
