package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/web"
)

// place is where the status page is served: an address of the files, a Unix
// socket, or an interface of a zone. It is what two processes agree by on what
// a socket is.
type place struct {
	Listen string `json:"listen,omitempty"` // as configured
	Socket string `json:"socket,omitempty"` // its path
	Device string `json:"device,omitempty"`
	// Ifindex is behind the name: the kernel binds to that.
	Ifindex int    `json:"ifindex,omitempty"`
	Port    uint16 `json:"port,omitempty"` // of Device
}

func (p place) String() string {
	switch {
	case p.Socket != "":
		return p.Socket
	case p.Device != "":
		return "@" + p.Device + ":" + strconv.Itoa(int(p.Port))
	default:
		return p.Listen
	}
}

// field is what of the admin block has it served there.
func (p place) field() string {
	switch {
	case p.Socket != "":
		return "admin.socket"
	case p.Device != "":
		return "admin.zones"
	default:
		return "admin.listen"
	}
}

// page is a place where it is served. Its listener is a *net.TCPListener or a
// *net.UnixListener.
type page struct {
	place
	listener net.Listener
	socket   socketFile // of a Unix socket
	task     slot
}

// pages are those that are open, in the order they were opened in.
type pages []*page

func (ps pages) at(p place) *page {
	for _, page := range ps {
		if page.place == p {
			return page
		}
	}
	return nil
}

// stop ends the tasks of all, and returns when they have. Sockets stay where
// they are: another process may serve there.
func (ps pages) stop() {
	var all sync.WaitGroup
	for _, p := range ps {
		all.Go(func() { p.task.stop() })
	}
	all.Wait()
}

// close closes what nobody has begun to serve at.
func (ps pages) close() {
	for _, p := range ps {
		_ = p.listener.Close()
	}
}

// placesOf are where the files want the page. An interface that is not there is
// a problem of its own.
func placesOf(c *config.Config, interfaces []edge.Interface) []place {
	var places []place
	if c.Admin.Listen != "" {
		places = append(places, place{Listen: c.Admin.Listen})
	}
	if c.Admin.Socket != "" {
		places = append(places, place{Socket: c.Admin.Socket})
	}
	for _, name := range c.Admin.Zones {
		z := c.Zone(name)
		if z == nil {
			continue // config.Parse has refused it
		}
		for _, device := range z.Interfaces {
			if i := slices.IndexFunc(interfaces, func(i edge.Interface) bool { return i.Name == device }); i >= 0 {
				places = append(places, place{Device: device, Ifindex: interfaces[i].Index, Port: c.Admin.Port})
			}
		}
	}
	return places
}

// serveAdmin keeps the status page where the configuration wants it. A page
// that cannot be served is a problem, and no reason to serve no traffic.
func (d *Daemon) serveAdmin(ctx context.Context, c *config.Config, interfaces []edge.Interface) (problems []edge.Problem) {
	d.token.use(c.Admin.TokenFile)
	if what, remedy := d.token.problem(); what != "" {
		problems = append(problems, edge.Problem{Pos: c.Admin.Pos, Path: "admin.tokenFile", What: what, Remedy: remedy})
	}
	places := placesOf(c, interfaces)
	if p := (place{Socket: d.files.answeredAt()}); p.Socket != "" && !slices.Contains(places, p) {
		places = append(places, p)
	}
	// Before listening: a new address may overlap an old one.
	d.closePages(func(p *page) bool { return !slices.Contains(places, p.place) || !p.socket.there() })
	for _, at := range places {
		if d.pages.at(at) != nil {
			continue
		}
		p, err := d.openPage(at, c.Admin)
		if err != nil {
			problems = append(problems, edge.Problem{
				Pos: c.Admin.Pos, Path: at.field(), What: "no status page at " + at.String() + ": " + err.Error(), Remedy: remedyOf(at, err),
			})
			continue
		}
		d.pages = append(d.pages, p)
		access := web.Access{}
		switch {
		case at.Socket != "":
			access.Operator = &web.Operator{Apply: d.Apply, Confirm: d.Confirm, Revert: d.Revert, Trial: d.Trial}
		case at.Device == "" && c.Admin.OnLoopback():
			access.Local = true
		default:
			access.Token = d.token.get
		}
		d.log.Info("status page", "at", at.String(), "token", access.Token != nil)
		// The page outlives ctx, to show connections draining.
		p.task.set(context.WithoutCancel(ctx), at.String(), func(ctx context.Context) {
			if err := d.site.Serve(ctx, p.listener, access); err != nil && !errors.Is(err, context.Canceled) {
				d.log.Error("status page ended", "at", at.String(), "err", err)
			}
		})
	}
	return problems
}

// remedyOf says what can be done, besides waiting.
func remedyOf(at place, err error) string {
	switch {
	case at.Socket != "" && errors.Is(err, syscall.ENOENT):
		return "make its directory, or have systemd do it: RuntimeDirectory in gatehouse.service; it is tried again"
	case at.Socket != "" && errors.Is(err, syscall.EACCES):
		return "gatehouse has to be able to write into its directory; it is tried again"
	}
	return "it is tried again"
}

// closePages ends those that are gone.
func (d *Daemon) closePages(gone func(*page) bool) {
	var left, ended pages
	for _, p := range d.pages {
		if gone(p) {
			ended = append(ended, p)
		} else {
			left = append(left, p)
		}
	}
	d.pages = left
	ended.stop()
	for _, p := range ended {
		p.socket.remove()
		d.log.Info("status page closed", "at", p.String())
	}
}

// openPage opens a place, unless the process before had it open.
func (d *Daemon) openPage(at place, a config.Admin) (*page, error) {
	p := d.inherited.at(at)
	if p != nil {
		d.inherited = slices.DeleteFunc(d.inherited, func(other *page) bool { return other == p })
	} else {
		p = &page{place: at}
		var err error
		if at.Socket != "" {
			p.listener, err = listenSocket(at.Socket)
		} else {
			p.listener, err = listenPage(at)
		}
		if err != nil {
			return nil, err
		}
	}
	if l, ok := p.listener.(*net.TCPListener); ok && at.Device == "" && a.OnLoopback() {
		// So that it is in the way of no zone, and what comes in elsewhere for
		// 127.0.0.1 (net.ipv4.conf.*.route_localnet, which kube-proxy may set) does
		// not get here. Before Linux 5.7 that takes CAP_NET_RAW; without, it is as
		// every other listener of that address.
		if c, err := l.SyscallConn(); err == nil {
			_ = bindTo(c, "lo")
		}
	}
	if at.Socket != "" {
		p.socket = fileOf(at.Socket)
	}
	return p, nil
}

// listenPage opens a TCP listener: at the address, or on the interface for
// every address.
func listenPage(at place) (*net.TCPListener, error) {
	address, device := at.Listen, at.Device
	if device != "" {
		address = ":" + strconv.Itoa(int(at.Port))
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if device == "" {
			return nil
		}
		return bindTo(c, device)
	}}
	lc.SetMultipathTCP(false)
	listener, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// bindTo keeps a socket to one interface.
func bindTo(c syscall.RawConn, device string) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), device) })
	if failed != nil {
		return fmt.Errorf("bind to %s: %w", device, failed)
	}
	return err
}
