package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

func TestApplyTwiceChangesNothing(t *testing.T) {
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, echo)))
	first := r.Apply([]edge.Frontend{f})
	listener := r.doors[f.Door].sockets[0]
	c := dial(t, first[0].Addr)
	say(t, c, "before")
	second := r.Apply([]edge.Frontend{f})
	if len(second) != 1 || second[0] != first[0] {
		t.Errorf("second Apply = %+v, want %+v", second, first)
	}
	if r.doors[f.Door].sockets[0] != listener {
		t.Error("the second Apply opened another socket")
	}
	say(t, c, "after")
	if s := r.Stats()[0]; s.Accepted != 1 || s.Active != 1 {
		t.Errorf("Stats after the second Apply = %+v, want the one connection", s)
	}
}

func TestNewTableLeavesConnectionsAlone(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(server(t, echo))))
	c := dial(t, addr)
	say(t, c, "before")

	other := greeter(t, "other")
	f := loopback(upAt(other))
	f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	if again := openDoor(t, r, f); again != addr {
		t.Fatalf("the door moved from %v to %v", addr, again)
	}
	say(t, c, "after")
	if got, err := ask(t, addr); got != "other" || err != nil {
		t.Errorf("a new connection got %q, %v; want the new backend", got, err)
	}
	var s Stats
	netnstest.Eventually(t, patience, "the new connection ended", func() bool { s = r.Stats()[0]; return s.Finished == 1 })
	if len(s.Backends) != 2 {
		t.Fatalf("Stats = %+v, want both backends", s)
	}
	for _, b := range s.Backends {
		if draining := b.Addr != other; b.Draining != draining || (b.Active == 1) != draining {
			t.Errorf("backend %+v, want the old one draining with the connection", b)
		}
	}
	c.Close()
	settled(t, r)
	if s := r.Stats()[0]; len(s.Backends) != 1 || s.Backends[0].Addr != other {
		t.Errorf("backends after draining = %+v, want only %v", s.Backends, other)
	}
}

func TestRemovedDoorIsClosedAndDrains(t *testing.T) {
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, echo)))
	addr := openDoor(t, r, f)
	c := dial(t, addr)
	say(t, c, "before")
	r.Apply(nil)
	if _, err := net.DialTimeout("tcp", addr.String(), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling a removed door: %v, want refused", err)
	}
	say(t, c, "after")
	if all := r.Stats(); len(all) != 1 || !all[0].Draining || all[0].Active != 1 {
		t.Errorf("Stats = %+v, want the door draining one connection", all)
	}
	c.Close()
	netnstest.Eventually(t, patience, "drained door forgotten", func() bool { return len(r.Stats()) == 0 })
}

func TestPortMovesBetweenDoorsInOneApply(t *testing.T) {
	r := newRelay(t, Options{})
	backend := upAt(greeter(t, "hello"))
	narrow := loopback(backend)
	narrow.Listen.Port = freePort(t)
	wide := narrow
	wide.Listen.Addr = netip.Addr{}
	openDoor(t, r, narrow)
	openDoor(t, r, wide)
	openDoor(t, r, narrow)
	if got, err := ask(t, netip.AddrPortFrom(narrow.Listen.Addr, narrow.Listen.Port)); got != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTakenPortNamesItsHolderAndIsTriedAgain(t *testing.T) {
	l := listenLoopback(t)
	f := loopback(upAt(greeter(t, "hello")))
	f.Listen.Port = addrOf(l).Port()
	r := newRelay(t, Options{})
	doors := r.Apply([]edge.Frontend{f})
	port := strconv.Itoa(int(f.Listen.Port))
	want := "listen on 127.0.0.1:" + port + ": address already in use: port " + port + " is held by this gatehouse"
	if doors[0].Error != want || doors[0].Addr.IsValid() {
		t.Errorf("Apply = %+v, want error %q", doors[0], want)
	}
	if got := r.Doors(); len(got) != 1 || got[0] != doors[0] {
		t.Errorf("Doors = %+v, want what Apply said", got)
	}
	l.Close()
	if got, err := ask(t, openDoor(t, r, f)); got != "hello" || err != nil {
		t.Errorf("after the port was free: %q, %v", got, err)
	}
}

func TestDoorErrorsSayWhatIsWrong(t *testing.T) {
	r := newRelay(t, Options{})
	good := loopback()
	sctp, foreign, device := good, good, good
	sctp.Protocol = edge.SCTP
	foreign.Listen = edge.Listen{Addr: netip.MustParseAddr("192.0.2.1"), Port: 8080}
	device.Listen = edge.Listen{Device: "nosuch0", Port: 8080}
	doors := r.Apply([]edge.Frontend{good, sctp, foreign, device, good})
	for i, want := range []string{
		"",
		"the relay does not speak SCTP",
		"listen on 192.0.2.1:8080: cannot assign requested address: 192.0.2.1 is not an address of this machine",
		"listen on @nosuch0:8080: there is no interface nosuch0",
		"TCP 127.0.0.1:0 is already the door of shop/web:80",
	} {
		if doors[i].Error != want {
			t.Errorf("door %d (%s): error %q, want %q", i, doors[i].Door, doors[i].Error, want)
		}
	}
}

func TestUnspecifiedAddressIsOfItsFamily(t *testing.T) {
	r := newRelay(t, Options{})
	f := loopback(upAt(greeter(t, "hello")))
	dials := func(host string, port uint16) bool {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))), patience)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
	} else {
		t.Logf("no IPv6 here (%v): only IPv4 is looked at", err)
		f.Listen.Addr = netip.Addr{}
		if !dials("127.0.0.1", openDoor(t, r, f).Port()) {
			t.Error("a door without an address does not accept IPv4")
		}
		return
	}
	for _, c := range []struct {
		addr   netip.Addr
		v4, v6 bool
	}{
		{netip.Addr{}, true, true},
		{netip.IPv4Unspecified(), true, false},
		{netip.IPv6Unspecified(), false, true},
	} {
		f.Listen.Addr = c.addr
		port := openDoor(t, r, f).Port()
		if v4, v6 := dials("127.0.0.1", port), dials("::1", port); v4 != c.v4 || v6 != c.v6 {
			t.Errorf("door at %v: IPv4 %t, IPv6 %t; want %t, %t", c.addr, v4, v6, c.v4, c.v6)
		}
	}
}

func TestCloseDrainsThenCuts(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(server(t, echo))))
	stays, leaves := dial(t, addr), dial(t, addr)
	say(t, stays, "hello")
	say(t, leaves, "hello")

	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan error)
	go func() { closed <- r.Close(ctx) }()
	netnstest.Eventually(t, patience, "door closed", func() bool { return r.Doors()[0].Error != "" })
	if _, err := net.DialTimeout("tcp", addr.String(), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling while draining: %v, want refused", err)
	}
	say(t, leaves, "while draining")
	leaves.Close()
	netnstest.Eventually(t, patience, "one connection ended", func() bool { return r.Stats()[0].Active == 1 })
	say(t, stays, "while draining")
	cancel()
	if _, err := io.ReadAll(stays); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection that was cut: %v, want a reset", err)
	}
	if err := <-closed; err == nil || !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "1 connections cut") {
		t.Errorf("Close = %v, want one connection cut", err)
	}
	if doors := r.Apply([]edge.Frontend{loopback()}); doors[0].Error != "the relay is closed" {
		t.Errorf("Apply after Close = %+v", doors)
	}
}

func TestCloseWithoutConnectionsIsAtOnce(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(greeter(t, "hello"))))
	if _, err := ask(t, addr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// Without any descriptor a client can not even be turned away; it waits, and is
// served when there is one again.
func TestAcceptRecoversFromExhaustion(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(greeter(t, "hello"))))
	// The client's descriptor has to be there before.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	stats := func() Stats { return r.Stats()[0] }

	giveBack := exhaustDescriptors(t, 0)
	began := time.Now()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	netnstest.Eventually(t, patience, "accept failed three times", func() bool { return stats().AcceptErrors >= 3 })
	if n, most := stats().AcceptErrors, uint64(len(r.loops))*(uint64(time.Since(began)/acceptPause)+2); n > most {
		t.Errorf("accept was tried %d times in %v: it spins", n, time.Since(began))
	}
	giveBack()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, receiveTimeout()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v, want the greeting", buf[:n], err)
	}
}

// With every descriptor in use new clients are turned away at once, those that
// are there stay, and when one is given back the next client is served.
func TestExhaustionShedsNewConnectionsOnly(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(server(t, echo))))
	old := dial(t, addr)
	say(t, old, "before")
	fds := make([]int, 8)
	for i := range fds {
		var err error
		if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[i])
	}
	giveBack := exhaustDescriptors(t, highestDescriptor(t)+1)
	// Fill the gaps below the limit.
	var fill []int
	for {
		fd, err := unix.Dup(fds[0])
		if err != nil {
			break
		}
		fill = append(fill, fd)
	}
	for _, fd := range fds {
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, receiveTimeout())
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
			continue // turned away already
		}
		if _, err := unix.Read(fd, make([]byte, 1)); err != unix.ECONNRESET {
			t.Errorf("a client that was too many read %v, want a reset", err)
		}
	}
	say(t, old, "during")
	giveBack()
	for _, fd := range fill {
		unix.Close(fd)
	}
	say(t, dial(t, addr), "after")
	s := r.Stats()[0]
	checkSums(t, s)
	if s.Failures[Exhausted] != uint64(len(fds)) || s.AcceptErrors == 0 {
		t.Errorf("%d connections turned away for exhaustion and %d errors of accept; want %d and some", s.Failures[Exhausted], s.AcceptErrors, len(fds))
	}
}

// Two bulky flows in one loop would be a core's work, with another core idle.
func TestFewConnectionsAreSpreadEvenly(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(upAt(server(t, echo))))
	for range 6 {
		say(t, dial(t, addr), "here")
	}
	least, most := r.loops[0].load.Load(), int64(0)
	for _, l := range r.loops {
		least, most = min(least, l.load.Load()), max(most, l.load.Load())
	}
	if most-least > 1 {
		t.Errorf("one loop has %d connections and another %d", most, least)
	}
}

func receiveTimeout() *unix.Timeval {
	tv := unix.NsecToTimeval(int64(patience))
	return &tv
}

func highestDescriptor(t *testing.T) uint64 {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var highest uint64
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		highest = max(highest, n)
	}
	return highest
}

// exhaustDescriptors lets this process open no descriptor from limit on.
func exhaustDescriptors(t *testing.T, limit uint64) (giveBack func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	less := before
	less.Cur = limit
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &less); err != nil {
		t.Fatal(err)
	}
	giveBack = sync.OnceFunc(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
	t.Cleanup(giveBack)
	return giveBack
}
