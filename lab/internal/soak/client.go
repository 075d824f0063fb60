package soak

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// The ports of gatehouse. Behind steady ones are backends that are always there, and nothing may fail; those behind
// rough ones are killed and stopped, and only wrong bytes are a failure.
const (
	steadyPort  = 7001
	roughPort   = 7002
	datagrams   = 7003
	limitedPort = 7004 // takes clientLimit connections of a client
	roughUDP    = 7005
	nobodyUDP   = 7006 // nobody is behind it
	spellPort   = 7010 // … to 7012: come and go with the configuration

	clientLimit = 20
)

// Count is what became of one kind of load.
type Count struct {
	Done    int `json:"done"`
	Failed  int `json:"failed"`
	Excused int `json:"excused,omitempty"` // failed, but so had its backend
}

// said is what the client process prints, a line each.
type said struct {
	Event      string           `json:"event"`
	Counts     map[string]Count `json:"counts"`
	Complaints []string         `json:"complaints"`
}

// client is the client process: it obeys the words on its input, and ends with it. life is how long a connection that
// does little lives at most.
type client struct {
	life time.Duration
	stop chan struct{}
	load sync.WaitGroup

	mu         sync.Mutex
	counts     map[string]Count
	complaints []string
}

func runClient(life time.Duration, in io.Reader, out io.Writer) error {
	c := &client{life: life, counts: map[string]Count{}}
	var printing sync.Mutex
	say := func(event string) {
		printing.Lock()
		defer printing.Unlock()
		c.mu.Lock()
		line, err := json.Marshal(said{event, c.counts, c.complaints})
		c.mu.Unlock()
		if err == nil {
			_, err = out.Write(append(line, '\n'))
		}
		if err != nil {
			os.Exit(1) // nobody listens any more
		}
	}
	go func() {
		for range time.Tick(time.Second) {
			say("counts")
		}
	}()
	for words := bufio.NewScanner(in); words.Scan(); {
		switch words.Text() {
		case "round":
			c.round()
		case "start":
			c.start()
		case "stop":
			close(c.stop)
			c.load.Wait()
		}
		say(words.Text() + " done")
	}
	return nil
}

// note counts how a piece of load went.
func (c *client) note(kind string, err error, excused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.counts[kind]
	switch {
	case errors.Is(err, errStopped):
	case err == nil:
		n.Done++
	case excused && !errors.Is(err, errWrong):
		n.Excused++
	default:
		n.Failed++
		if len(c.complaints) < 20 {
			c.complaints = append(c.complaints, fmt.Sprintf("%s %s: %v", time.Now().UTC().Format(time.TimeOnly), kind, err))
		}
	}
	c.counts[kind] = n
}

func dial(network string, port int) (net.Conn, error) {
	return net.DialTimeout(network, fmt.Sprintf("%s:%d", edgeAddr, port), 15*time.Second)
}

// begin opens a connection and tells the backend what is wanted of it.
func begin(port int, format string, args ...any) (*net.TCPConn, error) {
	conn, err := dial("tcp", port)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, format+"\n", args...); err != nil {
		conn.Close()
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// within lets a connection fail that takes too long.
func within(conn net.Conn, d time.Duration) { _ = conn.SetDeadline(time.Now().Add(d)) } // the next call says what is wrong

// pause returns false if the load was stopped meanwhile.
func (c *client) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.stop:
		return false
	case <-t.C:
		return true
	}
}

func between(least, most time.Duration) time.Duration { return least + rand.N(max(most-least, 1)) }

// start starts the whole mix.
func (c *client) start() {
	c.stop = make(chan struct{})
	c.each(5*time.Millisecond, "short", steadyPort, c.short)
	c.each(100*time.Millisecond, "short, rough", roughPort, c.short)
	for port := spellPort; port < spellPort+3; port++ {
		c.each(500*time.Millisecond, "short, frontends that come and go", -port, c.short)
	}
	c.each(200*time.Millisecond, "half-closed", steadyPort, c.halfClosed)
	c.each(time.Second, "half-closed, rough", roughPort, c.halfClosed)
	c.each(100*time.Millisecond, "reset by the client", steadyPort, c.reset)
	c.each(time.Second, "reset by the client", roughPort, c.reset)
	c.each(10*time.Second, "as fast as it goes", steadyPort, c.burst)
	c.each(50*time.Millisecond, "UDP, short", datagrams, c.question)
	c.each(time.Second, "UDP, rough", roughUDP, c.question)
	c.each(time.Second, "UDP, to nobody", nobodyUDP, c.nobody)
	c.each(7*time.Second, "over the limit of a client", limitedPort, c.crowd)
	c.keep(400, "idle", steadyPort, c.idle)
	c.keep(100, "idle, rough", roughPort, c.idle)
	c.keep(3, "bulk", steadyPort, c.bulk)
	c.keep(1, "bulk, rough", roughPort, c.bulk)
	c.keep(5, "slow reader", steadyPort, c.slow)
	c.keep(20, "UDP, long", datagrams, c.interview)
}

type errand func(kind string, port int) error

// each runs an errand again and again; a negative port stands for one that may be closed.
func (c *client) each(period time.Duration, kind string, port int, f errand) {
	excused := port < 0 || port == roughPort || port == roughUDP
	port = max(port, -port)
	c.load.Go(func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
			}
			c.load.Go(func() { c.note(kind, f(kind, port), excused) })
		}
	})
}

// keep runs so many of an errand at a time, which ends and begins anew.
func (c *client) keep(n int, kind string, port int, f errand) {
	for i := range n {
		c.load.Go(func() {
			for c.pause(time.Duration(i) * time.Second / time.Duration(n)) {
				err := f(kind, port)
				c.note(kind, err, port == roughPort)
				if err != nil && !c.pause(time.Second) {
					return
				}
			}
		})
	}
}
