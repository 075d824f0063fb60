package relay

import "golang.org/x/sys/unix"

const (
	// What one splice moves at most. A pipe of the default size holds 16
	// fragments, which is less than a socket's receive buffer does.
	pipeSize = 1 << 20

	maxSparePipes = 16
)

// pipe carries bytes from one socket to the other without their being copied
// into this process. A direction borrows one only while bytes are in it.
type pipe struct {
	out, in int32 // its ends: to read from, to write to
	held    int   // bytes in it
}

// pipes are those that are empty and not in use, of one loop.
type pipes struct{ spare []*pipe }

func (p *pipes) borrow() (*pipe, error) {
	if n := len(p.spare); n > 0 {
		taken := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return taken, nil
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// What a user without privileges may have in pipes is bounded
	// (pipe-user-pages-soft): the default size works too.
	_, _ = unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{out: int32(ends[0]), in: int32(ends[1])}, nil
}

// giveBack takes a pipe that may still hold bytes of a connection that is gone.
func (p *pipes) giveBack(x *pipe) {
	if x.held > 0 || len(p.spare) >= maxSparePipes {
		x.close()
		return
	}
	p.spare = append(p.spare, x)
}

func (p *pipes) close() {
	for _, x := range p.spare {
		x.close()
	}
	p.spare = nil
}

func (p *pipe) close() {
	closeFD(p.out)
	closeFD(p.in)
}
