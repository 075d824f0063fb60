package web

import (
	"net"
	"net/netip"
	"sync"
)

const (
	// Connections that a listener has at a time, and of one client. Each is a
	// descriptor, and those are what the doors live on.
	maxConnections          = 256
	maxConnectionsPerClient = 32
)

// crowd is a listener that closes at once what is too much.
type crowd struct {
	net.Listener

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

func newCrowd(l net.Listener) *crowd { return &crowd{Listener: l, of: map[netip.Addr]int{}} }

func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(conn.RemoteAddr().String())
		if c.enter(client) {
			return &visitor{Conn: conn, leave: sync.OnceFunc(func() { c.leave(client) })}, nil
		}
		_ = conn.Close()
	}
}

// enter counts a connection, unless it is one too many. Who comes from this
// machine has no share of his own: a loopback address says nothing of who it is,
// and a Unix socket has none.
func (c *crowd) enter(client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	counted := client.IsValid() && !client.IsLoopback()
	if c.all >= maxConnections || counted && c.of[client] >= maxConnectionsPerClient {
		return false
	}
	c.all++
	if counted {
		c.of[client]++
	}
	return true
}

func (c *crowd) leave(client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[client]--; c.of[client] <= 0 {
		delete(c.of, client)
	}
}

// visitor is a connection that is counted until it is closed.
type visitor struct {
	net.Conn
	leave func()
}

func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}
