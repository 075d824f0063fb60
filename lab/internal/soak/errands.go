package soak

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// The errands, each one connection or UDP session, or a few.

func (c *client) short(_ string, port int) error {
	conn, err := begin(port, "hello")
	if err != nil {
		return err
	}
	defer conn.Close()
	within(conn, 15*time.Second)
	got, err := io.ReadAll(conn)
	switch {
	case err != nil || string(got) == hello:
		return err
	case len(got) == 0:
		return errShort
	default:
		return fmt.Errorf("%w: %q", errWrong, got)
	}
}

// halfClosed says all it has to say, closes its side, and waits for the answer.
func (c *client) halfClosed(_ string, port int) error {
	conn, err := begin(port, "drink")
	if err != nil {
		return err
	}
	defer conn.Close()
	within(conn, 20*time.Second)
	words := stream(rand.IntN(len(streams)/2), 0, 1+rand.IntN(200_000))
	if _, err := conn.Write(words); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	switch want := fmt.Sprintf("%d %08x\n", len(words), crc32.ChecksumIEEE(words)); {
	case err != nil || string(got) == want:
		return err
	case len(got) == 0:
		return errShort
	default:
		return fmt.Errorf("%w: the backend got %q, not %q", errWrong, got, want)
	}
}

// reset breaks a connection off: as soon as it is there, within a download, or within an upload.
func (c *client) reset(_ string, port int) error {
	format := []string{"hello", "pour 1 8000000 0", "drink"}[rand.IntN(3)]
	conn, err := begin(port, format)
	if err != nil {
		return err
	}
	defer conn.Close()
	within(conn, 10*time.Second)
	switch format {
	case "drink":
		_, err = conn.Write(stream(0, 0, rand.IntN(500_000)))
	case "hello":
	default:
		_, err = io.ReadFull(conn, make([]byte, rand.IntN(100_000)))
		c.pause(between(0, time.Second)) // what is under way meanwhile is stuck in gatehouse
	}
	_ = conn.SetLinger(0)
	return err
}

func (c *client) burst(_ string, port int) error {
	const total = 16 << 20
	number := rand.IntN(len(streams))
	conn, err := begin(port, "pour %d %d 0", number, total)
	if err != nil {
		return err
	}
	defer conn.Close()
	within(conn, time.Minute)
	return drain(conn, number, 0, total, 256<<10, 0, nil)
}

// idle says a word now and then.
func (c *client) idle(_ string, port int) error {
	conn, err := begin(port, "echo")
	if err != nil {
		return err
	}
	defer conn.Close()
	ends := time.Now().Add(between(c.life/10, c.life))
	r := bufio.NewReader(conn)
	for n := 0; time.Now().Before(ends); n++ {
		word := fmt.Sprintf("word %d of %s\n", n, conn.LocalAddr())
		within(conn, 15*time.Second)
		if _, err := io.WriteString(conn, word); err != nil {
			return err
		}
		got, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %d words: %w", n, err)
		}
		if got != word {
			return fmt.Errorf("%w: %q, not %q", errWrong, got, word)
		}
		if !c.pause(between(c.life/20, c.life/10)) {
			break
		}
	}
	// Both ends are heard.
	within(conn, 15*time.Second)
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	switch _, err := r.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: more than what was said", errWrong)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("instead of the end: %w", err)
	}
	return nil
}

// bulk is a download at half a megabyte a second.
func (c *client) bulk(_ string, port int) error {
	const rate = 500_000
	total := int(between(c.life/10, c.life).Seconds()*rate) + 1
	number := rand.IntN(len(streams))
	conn, err := begin(port, "pour %d %d %d", number, total, rate)
	if err != nil {
		return err
	}
	defer conn.Close()
	within(conn, c.life+30*time.Second)
	return drain(conn, number, 0, total, 64<<10, 0, c.stop)
}

// slow takes a stream that is there at once bit by bit for a while, then the rest, or no more.
func (c *client) slow(_ string, port int) error {
	const total = 6 << 20
	number := rand.IntN(len(streams))
	conn, err := begin(port, "pour %d %d 0", number, total)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(32 << 10)
	within(conn, c.life+time.Minute)
	enough := make(chan struct{})
	timer := time.AfterFunc(between(c.life/20, c.life/5), func() { close(enough) })
	defer timer.Stop()
	counting := &counter{Reader: conn}
	if err := drain(counting, number, 0, total, 2000, 50*time.Millisecond, enough); !errors.Is(err, errStopped) {
		return err
	}
	if rand.IntN(2) == 0 {
		return nil // with most of it unread, which is a reset
	}
	return drain(conn, number, counting.n, total, 256<<10, 0, nil)
}

type counter struct {
	io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

// crowd opens more connections than one client may have: so many are served, and the rest are turned away.
func (c *client) crowd(_ string, port int) error {
	const n = clientLimit + 10
	served := make(chan bool, n)
	hold := make(chan struct{})
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			conn, err := begin(port, "echo")
			if err == nil {
				defer conn.Close()
				within(conn, 15*time.Second)
				_, err = io.WriteString(conn, "there?")
			}
			if err == nil {
				_, err = io.ReadFull(conn, make([]byte, 6))
			}
			served <- err == nil
			<-hold
		})
	}
	got := 0
	for range n {
		if <-served {
			got++
		}
	}
	close(hold)
	all.Wait()
	if got != clientLimit {
		return fmt.Errorf("%d of %d connections were served, not %d", got, n, clientLimit)
	}
	return nil
}

func ask(conn net.Conn, question string) (backend string, err error) {
	within(conn, 5*time.Second)
	if _, err := io.WriteString(conn, question); err != nil {
		return "", err
	}
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	if err != nil {
		return "", err
	}
	var echo string
	if _, err := fmt.Sscan(string(buf[:n]), &backend, &echo); err != nil || echo != question {
		return "", fmt.Errorf("%w: %q was answered %q", errWrong, question, buf[:n])
	}
	return backend, nil
}

// question is a UDP session that is left to end by itself.
func (c *client) question(_ string, port int) error {
	conn, err := dial("udp", port)
	if err != nil {
		return err
	}
	defer conn.Close()
	first := ""
	for i := range 3 {
		backend, err := ask(conn, fmt.Sprint(i))
		if err != nil {
			return err
		}
		if first == "" {
			first = backend
		}
		if backend != first {
			return fmt.Errorf("a session went from %s to %s", first, backend)
		}
	}
	return nil
}

// nobody asks where nobody is, and wants to be told so.
func (c *client) nobody(_ string, port int) error {
	conn, err := dial("udp", port)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err = ask(conn, "0"); !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("instead of a refusal: %v", err)
	}
	return nil
}

// interview is a UDP session that is never idle for long. Its backend may be taken out of the configuration, and it
// may then get another one.
func (c *client) interview(_ string, port int) error {
	conn, err := dial("udp", port)
	if err != nil {
		return err
	}
	defer conn.Close()
	ends := time.Now().Add(between(c.life/10, c.life))
	for i := 0; time.Now().Before(ends); i++ {
		if _, err := ask(conn, fmt.Sprint(i)); err != nil {
			return fmt.Errorf("after %d answers: %w", i, err)
		}
		if !c.pause(time.Second) {
			break
		}
	}
	return nil
}

// round is every kind of load once, to its end. Afterwards gatehouse has all that it gets when it is first needed, and
// keeps: so many streams are stuck in it at a time, and so many sessions refused, that each of its loops has all of its
// spare pipes, and its socket for ICMP.
func (c *client) round() {
	c.stop = make(chan struct{})
	var all sync.WaitGroup
	once := func(n int, kind string, port int, f errand) {
		for range n {
			all.Go(func() { c.note(kind, f(kind, port), false) })
		}
	}
	once(50, "short", steadyPort, c.short)
	once(10, "half-closed", steadyPort, c.halfClosed)
	once(10, "reset by the client", steadyPort, c.reset)
	once(2, "as fast as it goes", steadyPort, c.burst)
	once(20, "UDP, short", datagrams, c.question)
	once(40, "UDP, to nobody", nobodyUDP, c.nobody)
	once(1, "over the limit of a client", limitedPort, c.crowd)
	all.Wait()
	once(64, "stuck", steadyPort, c.stuck)
	all.Wait()
}

// stuck does not read for a while, and then all.
func (c *client) stuck(_ string, port int) error {
	const total = 12 << 20
	number := rand.IntN(len(streams))
	conn, err := begin(port, "pour %d %d 0", number, total)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(32 << 10)
	within(conn, time.Minute)
	time.Sleep(1500 * time.Millisecond)
	return drain(conn, number, 0, total, 256<<10, 0, nil)
}
