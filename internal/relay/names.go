package relay

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/hello"
	"e13.dev/gatehouse/internal/proxyproto"
)

// # Names
//
// A door can be shared by frontends that each take some TLS server names of what
// comes through it. A connection is then the door's own until its hello has
// been read, and is given to the door of a frontend, which has its tables,
// limits and counters but no socket:
//
//	acceptor ──► conn: greeting ──peek, hello.TLS──► names.find ──► conn of the frontend's door: dial
//
// The hello is looked at where it is, in the socket's buffer, and read from
// there once there is a backend: nothing is kept or copied for it. The same
// state reads the header of a trusted proxy, which is taken out of the way.

// greetingTimeout is how long a client may take to say who it wants. Who has
// said nothing by then waits, perhaps, for the server to begin.
const greetingTimeout = 5 * time.Second

// greetingLook is how often it is seen whether such a client is still to be
// waited for: what it has connected to may be closed, or one frontend's by now.
const greetingLook = 500 * time.Millisecond

// names says which frontend of a shared door takes which server name.
type names struct {
	exact map[string]*door
	under map[string]*door // "*.example.org" as ".example.org"
	rest  *door            // "*"; nil: nobody
}

// anyName is the hostname that takes whatever no other one does.
const anyName = "*"

func newNames() *names { return &names{exact: map[string]*door{}, under: map[string]*door{}} }

// add gives a frontend its names. Who is first keeps a name; the others are
// returned.
func (n *names) add(d *door, hostnames []string) (taken []string) {
	give := func(to map[string]*door, key, name string) {
		if to[key] != nil {
			taken = append(taken, name)
			return
		}
		to[key] = d
	}
	for _, name := range hostnames {
		suffix, wild := strings.CutPrefix(name, "*")
		switch {
		case name == anyName && n.rest == nil:
			n.rest = d
		case name == anyName:
			taken = append(taken, name)
		case wild:
			give(n.under, suffix, name)
		default:
			give(n.exact, name, name)
		}
	}
	return taken
}

// find returns who takes a server name: the frontend that has exactly it, or
// that with the longest wildcard; nil: nobody. The empty name is what has none.
func (n *names) find(name string) *door {
	if d := n.exact[name]; d != nil && name != "" {
		return d
	}
	if len(n.under) > 0 {
		for rest := name; ; {
			dot := strings.IndexByte(rest, '.')
			if dot < 0 {
				break
			}
			if d := n.under[rest[dot:]]; d != nil {
				return d
			}
			rest = rest[dot+1:]
		}
	}
	return n.rest
}

// newSharedTable is what connections go by until their name is known. They are
// held to the widest of what the frontends allow; those hold them to their own.
func newSharedTable(frontends []edge.Frontend, n *names) *table {
	t := &table{zone: frontends[0].Zone, proxies: slices.Clone(frontends[0].AcceptProxyProtocol), names: n}
	widest := func(a, b int) int { // 0: no limit
		if a == 0 || b == 0 {
			return 0
		}
		return max(a, b)
	}
	for i, f := range frontends {
		t.anySource = t.anySource || f.SourceRanges == nil
		t.sources = append(t.sources, f.SourceRanges...)
		if i == 0 {
			t.MaxConnections, t.MaxConnectionsPerClient = f.MaxConnections, f.MaxConnectionsPerClient
			continue
		}
		t.MaxConnections = widest(t.MaxConnections, f.MaxConnections)
		t.MaxConnectionsPerClient = widest(t.MaxConnectionsPerClient, f.MaxConnectionsPerClient)
	}
	if t.IdleTimeout = 0; frontends[0].Protocol == edge.UDP {
		t.IdleTimeout = defaultUDPIdleTimeout
	}
	return t
}

// via is the proxy that a connection came through.
type via struct {
	peer netip.Addr     // the proxy's
	dst  netip.AddrPort // where the client has connected to
}

// awaitGreeting waits for what a client begins with.
func (c *conn) awaitGreeting(l *loop) {
	c.state, c.mark = greeting, l.now+c.r.times.greeting
	l.set(&c.timer, min(c.r.times.greeting, greetingLook))
}

// greet reads on in what a client begins with: the header of a trusted proxy,
// then, if the door is shared, the hello.
func (c *conn) greet(l *loop) {
	for {
		t := c.d.table.Load()
		if why := c.refusal(t); why != "" {
			c.turnAway(l, why)
			return
		}
		n, errno := peek(c.client.fd, l.buffer)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			c.client.readable = false
			return
		case errno != 0 || n == 0:
			c.turnAway(l, ClientGone)
			return
		}
		// No more will come, or there is no room for it.
		all := c.client.hungUp || n == len(l.buffer)
		if c.awaitsHeader(t) {
			if !c.readHeader(l, l.buffer[:n], all) {
				return
			}
			continue
		}
		if t.names == nil {
			c.greeted(l)
			return
		}
		name, err := hello.TLS(l.buffer[:n])
		if errors.Is(err, hello.ErrShort) {
			if !all {
				return
			}
			err = hello.ErrBad
		}
		c.route(l, t.names, name, err)
		return
	}
}

// awaitsHeader says whether the client is still to be told by the proxy that it
// comes through.
func (c *conn) awaitsHeader(t *table) bool {
	return c.state == greeting && !c.proxied && t.isProxy(c.from.Addr())
}

// readHeader takes the header of a trusted proxy out of the way, and says
// whether to read on: it is not whole, or not right.
func (c *conn) readHeader(l *loop, b []byte, all bool) bool {
	h, n, err := proxyproto.Parse(b)
	if errors.Is(err, proxyproto.ErrShort) && !all {
		return false
	}
	if err != nil {
		c.turnAway(l, ProxyHeader)
		return false
	}
	if got, errno := read(c.client.fd, l.buffer[:n]); errno != 0 || got != n {
		c.turnAway(l, ClientGone)
		return false
	}
	c.proxied = true
	c.d.releaseClient(c.from.Addr(), c.counted) // as it was counted by a table by which it was no proxy
	c.counted &^= byClient
	if !h.Local {
		c.via = &via{peer: c.from.Addr(), dst: h.Dst}
		c.from = h.Src
	}
	var why Reason
	if why, c.counted = c.d.admitClient(c.d.table.Load(), c.from.Addr(), l.now, c.counted); why != "" {
		c.turnAway(l, why)
		return false
	}
	if c.d.table.Load().names == nil {
		c.greeted(l)
		return false
	}
	return true
}

// greeted goes on once everything is known that a door has to know.
func (c *conn) greeted(l *loop) {
	l.clear(&c.timer)
	c.guard = !c.proxied && len(c.d.table.Load().proxies) > 0
	c.dial(l)
}

// route gives a connection to the frontend that takes its name.
func (c *conn) route(l *loop, n *names, name string, err error) {
	to := n.rest
	if err == nil && name != "" {
		to = n.find(name)
	}
	switch {
	case to != nil:
		c.give(l, to)
	case err != nil || name == "":
		c.turnAway(l, NotTLS)
	default:
		c.turnAway(l, UnknownName, "server_name", name)
	}
}

// give makes a connection one of another door.
func (c *conn) give(l *loop, to *door) {
	c.tally.routed()
	c.d.release(c.from.Addr(), c.counted)
	c.d, c.tally = to, l.tally(to)
	c.tally.accepted()
	var why Reason
	if why, c.counted = to.admit(to.table.Load(), c.from.Addr(), l.now, true); why != "" {
		c.turnAway(l, why)
		return
	}
	c.greeted(l)
}

// greetingExpired is called now and then, and when a client has taken too long.
func (c *conn) greetingExpired(l *loop) {
	t := c.d.table.Load()
	why, left := c.refusal(t), c.mark-l.now
	switch {
	case why != "":
		c.turnAway(l, why)
	case t.names == nil && !c.awaitsHeader(t):
		c.greeted(l)
	case left > 0:
		l.set(&c.timer, min(left, greetingLook))
	case c.awaitsHeader(t):
		c.turnAway(l, ProxyHeader)
	case t.names.rest != nil && !c.client.readable:
		c.give(l, t.names.rest) // it has said nothing: the server may be to begin
	default:
		c.turnAway(l, HelloTimeout)
	}
}

// guarded says whether a client that is no trusted proxy has shown that it does
// not begin with a PROXY protocol header, which a backend may believe. It is
// asked when there is something to be read.
func (c *conn) guarded(l *loop) bool {
	n, errno := peek(c.client.fd, l.buffer[:16])
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		c.client.readable = false
		return false
	case errno != 0:
		c.guard = false
		c.broken(l, &c.client, errno)
		return false
	case n > 0:
		is, maybe := proxyproto.Begins(l.buffer[:n])
		// What is behind urgent data is not shown, and would be read all the same.
		if is || maybe && c.client.hungUp && c.client.urgent {
			c.end(l, endedUntrusted)
			return false
		}
		if maybe && !c.client.hungUp {
			c.client.readable = false
			return false
		}
	}
	c.guard = false
	return true
}
