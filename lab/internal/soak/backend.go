package soak

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// A connection begins with a line that says what the backend shall do:
//
//	hello              say so, and close
//	echo               send everything back, until the client has said all it wants
//	pour N BYTES RATE  send so much of stream N, at so many bytes a second (0: as fast as it is taken), and close
//	drink              take everything until the end; a while later, say how much it was and its checksum
const backendPort = 7100

const hello = "hello, who is there\n"

// streams is what all poured streams are parts of: stream N begins at offset N.
var streams = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// stream returns up to n bytes of stream number, from position on.
func stream(number, position, n int) []byte {
	at := (number + position) % len(streams)
	return streams[at:min(at+n, len(streams))]
}

const crumb = 16 << 10 // what is poured at a time

// backend serves one address until it is killed.
func backend(addr string) error {
	address := net.JoinHostPort(addr, fmt.Sprint(backendPort))
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				continue // an ICMP error about an earlier answer
			}
			_, _ = packets.WriteTo(append([]byte(addr+" "), buf[:n]...), from)
		}
	}()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = attend(conn) // what matters the client notices
		}()
	}
}

func attend(conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 512)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	var number, total, rate int
	switch {
	case line == "hello\n":
		_, err = io.WriteString(conn, hello)
	case line == "echo\n":
		_, err = io.Copy(conn, r)
	case line == "drink\n":
		sum := crc32.NewIEEE()
		var n int64
		if n, err = io.Copy(sum, r); err == nil {
			time.Sleep(300 * time.Millisecond)
			_, err = fmt.Fprintf(conn, "%d %08x\n", n, sum.Sum32())
		}
	default:
		if _, err := fmt.Sscanf(line, "pour %d %d %d", &number, &total, &rate); err != nil {
			return err
		}
		err = pour(conn, number, total, rate)
	}
	return err
}

func pour(w io.Writer, number, total, rate int) error {
	began := time.Now()
	for sent := 0; sent < total; {
		if rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(float64(sent) / float64(rate) * float64(time.Second)))))
		}
		n, err := w.Write(stream(number, sent, min(crumb, total-sent)))
		sent += n
		if err != nil {
			return err
		}
	}
	return nil
}

// errWrong is about bytes, and never excused; errShort is about an end that came too early, which is also how a
// backend ends that is killed.
var (
	errWrong = errors.New("these are not the bytes that were sent")
	errShort = errors.New("the end came too early")
)

// drain reads a poured stream from position on to its end, and compares. Between reads of at most so many bytes it
// pauses; stop ends it before.
func drain(r io.Reader, number, position, total, most int, pause time.Duration, stop <-chan struct{}) error {
	buf := make([]byte, most)
	for {
		n, err := r.Read(buf)
		for got := buf[:n]; len(got) > 0; {
			want := stream(number, position, len(got))
			if !bytes.Equal(got[:len(want)], want) {
				return fmt.Errorf("%w, after %d", errWrong, position)
			}
			got, position = got[len(want):], position+len(want)
		}
		if errors.Is(err, io.EOF) {
			if position != total {
				return fmt.Errorf("%w: %d of %d bytes", errShort, position, total)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", position, total, err)
		}
		select {
		case <-stop:
			return errStopped
		default:
		}
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}

var errStopped = errors.New("stopped")
