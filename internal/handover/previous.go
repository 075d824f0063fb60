package handover

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// farewellTime is how long the old program may take to let go.
const farewellTime = 5 * time.Second

// Previous is the program whose place we take.
type Previous struct {
	conn conn
	once sync.Once // giving up
}

// Inherit finds the program that has started this one to take its place, and
// says hello. It is nil if there is none. To be called first: nobody else can
// then inherit what leads to it.
func Inherit(version string) (*Previous, error) {
	value, set := os.LookupEnv(variable)
	if !set {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	fd, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("%s is %q, which is no descriptor; unset it", variable, value)
	}
	unix.CloseOnExec(int(fd))
	if t, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("%s is %d, which leads to no gatehouse; unset it", variable, fd)
	}
	c, err := newConn(os.NewFile(uintptr(fd), "to the old program"))
	if err != nil {
		return nil, fmt.Errorf("%s is %d: %w", variable, fd, err)
	}
	p := &Previous{conn: c}
	if err := c.send(message{Kind: hello, Protocol: Protocol, Version: version}); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("say hello to the program before this one: %w", err)
	}
	return p, nil
}

// Take asks for the sockets, and returns them all.
func (p *Previous) Take(ctx context.Context) (sockets []Socket, err error) {
	err = p.conn.within(ctx, func() error {
		if err := p.conn.send(message{Kind: ready}); err != nil {
			return err
		}
		for {
			m, err := p.conn.receive()
			switch {
			case err != nil:
				return err
			case m.Kind == batch:
				sockets = append(sockets, m.Sockets...)
				if err := p.conn.send(message{Kind: taken}); err != nil {
					return err
				}
			case m.Kind == all && m.Total == len(sockets):
				return nil
			case m.Kind == all:
				return fmt.Errorf("%d of %d sockets came", len(sockets), m.Total)
			default:
				return fmt.Errorf("it said %q where sockets were expected", m.Kind)
			}
		}
	})
	if err != nil {
		Close(sockets)
		return nil, fmt.Errorf("take the sockets of the program before this one: %w", err)
	}
	return sockets, nil
}

// Serving says that we do, and waits until the program before us lets go. An
// error means that it goes on, and that we must not.
func (p *Previous) Serving(ctx context.Context) error {
	defer func() { _ = p.conn.Close() }()
	if err := p.conn.send(message{Kind: serving}); err != nil {
		return fmt.Errorf("tell the program before this one: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	// What becomes of it is its own business from now on.
	_ = p.conn.within(ctx, func() error {
		_, err := p.conn.expect(farewell)
		return err
	})
	return nil
}

// GiveUp says why this program cannot take over. It may be called on a nil
// Previous, and after everything else: it does nothing then.
func (p *Previous) GiveUp(why error) {
	if p == nil || why == nil {
		return
	}
	p.once.Do(func() {
		_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
		reason := why.Error()
		_ = p.conn.send(message{Kind: failed, Reason: reason[:min(len(reason), 4<<10)]})
		_ = p.conn.Close()
	})
}
