package relay

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One datagram there and one back, for each of some flows at a time: the cost
// of two datagrams through a door, with what client and backend cost.
func BenchmarkUDPEcho(b *testing.B) {
	for _, flows := range []int{1, 64} {
		for _, size := range []int{64, 1200} {
			b.Run(fmt.Sprintf("flows=%d/bytes=%d", flows, size), func(b *testing.B) {
				r := newRelay(b, Options{})
				addr := openDoor(b, r, udpLoopback(upAt(echoFast(b))))
				roomAgain()
				clients := make([]int32, flows)
				for i := range clients {
					fd, errno := datagramSocket(unix.AF_INET)
					if errno != 0 {
						b.Fatal(errno)
					}
					b.Cleanup(func() { closeFD(fd) })
					if errno := connect(fd, addr); errno != 0 {
						b.Fatal(errno)
					}
					clients[i] = fd
				}
				p := make([]byte, size)
				poll := make([]unix.PollFd, 1)
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for n := 0; b.Loop(); n++ {
					// As many as there are flows are on their way.
					fd := clients[n%flows]
					if n >= flows {
						for {
							if _, errno := read(fd, p); errno == 0 {
								break
							}
							poll[0] = unix.PollFd{Fd: fd, Events: unix.POLLIN}
							unix.Poll(poll, 1000)
						}
					}
					if errno := send(fd, p); errno != 0 {
						b.Fatal(errno)
					}
				}
			})
		}
	}
}

// roomAgain is makeRoom, which package testing undoes before each benchmark.
func roomAgain() { runtime.GOMAXPROCS(2 * cores) }

// echoFast is a backend that allocates nothing.
func echoFast(b *testing.B) netip.AddrPort {
	fd, errno := datagramSocket(unix.AF_INET)
	if errno != 0 {
		b.Fatal(errno)
	}
	if err := unix.Bind(int(fd), &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		b.Fatal(err)
	}
	setBuffers(fd, doorBuffer)
	ended := make(chan struct{})
	stop := make(chan struct{})
	b.Cleanup(func() {
		close(stop)
		<-ended
		closeFD(fd)
	})
	in := newReceiver(true)
	go func() {
		defer close(ended)
		poll := make([]unix.PollFd, 1)
		for {
			n, errno := in.receive(fd, 0, messages)
			if errno != 0 {
				poll[0] = unix.PollFd{Fd: fd, Events: unix.POLLIN}
				unix.Poll(poll, 100)
				select {
				case <-stop:
					return
				default:
				}
			}
			for i := range n {
				h := in.headers[i]
				h.Namelen = unix.SizeofSockaddrInet4
				h.SetControllen(0)
				in.iovecs[i].SetLen(len(in.datagrams[i].data))
				out := [1]mmsghdr{h}
				sendmmsg(fd, out[:])
				in.iovecs[i].SetLen(64 << 10)
			}
		}
	}()
	return boundTo(int(fd))
}

// A client that is new with each datagram, as those of DNS are.
func BenchmarkUDPNewSession(b *testing.B) {
	f := udpLoopback(upAt(echoFast(b)))
	f.IdleTimeout = 100 * time.Millisecond
	r := newRelay(b, Options{})
	addr := openDoor(b, r, f)
	roomAgain()
	p := make([]byte, 64)
	poll := make([]unix.PollFd, 1)
	b.ReportAllocs()
	for b.Loop() {
		fd, errno := datagramSocket(unix.AF_INET)
		if errno != 0 {
			b.Fatal(errno)
		}
		connect(fd, addr)
		send(fd, p)
		poll[0] = unix.PollFd{Fd: fd, Events: unix.POLLIN}
		if n, _ := unix.Poll(poll, 1000); n == 0 {
			b.Fatal("no answer")
		}
		closeFD(fd)
	}
}
