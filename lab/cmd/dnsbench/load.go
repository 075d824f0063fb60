package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stub is the upstream: every name has one address, for an hour.
func stub() error {
	conn, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", stubPort))
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		end := 12
		for end < n && buf[end] != 0 {
			end += 1 + int(buf[end])
		}
		if end += 5; end > n {
			continue
		}
		out := slices.Clone(buf[:end])
		out[2], out[3] = 0x81, 0x80
		copy(out[4:12], []byte{0, 1, 0, 1, 0, 0, 0, 0})
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 198, 51, 100, 7)
		_, _ = conn.WriteTo(out, from)
	}
}

// pace asks at a fixed rate, whether or not answers come, and prints how long they took: the median and the 99th of a
// hundred, in µs.
func pace(suffix, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	const socketsN = 8
	var all []time.Duration
	var mu sync.Mutex
	var done sync.WaitGroup
	var failed error
	for s := range socketsN {
		conn, err := net.Dial("udp", net.JoinHostPort(serverAddr, "53"))
		if err != nil {
			return err
		}
		done.Go(func() {
			took, err := paceOne(conn, suffix, s, n*rate/socketsN, time.Second*socketsN/rate)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				failed = err
			}
		})
	}
	done.Wait()
	if failed != nil {
		return failed
	}
	slices.Sort(all)
	fmt.Println(all[len(all)/2].Microseconds(), all[len(all)*99/100].Microseconds())
	return nil
}

func paceOne(conn net.Conn, suffix string, socket, n int, every time.Duration) ([]time.Duration, error) {
	var due [1 << 16]time.Time // when each was asked, by ID
	var mu sync.Mutex
	took := make([]time.Duration, 0, n)
	received := make(chan struct{})
	go func() {
		defer close(received)
		buf := make([]byte, 2048)
		for len(took) < n {
			got, err := conn.Read(buf)
			if err != nil {
				return
			}
			if got < 12 {
				continue
			}
			mu.Lock()
			took = append(took, time.Since(due[binary.BigEndian.Uint16(buf)]))
			mu.Unlock()
		}
	}()
	begin := time.Now().Add(time.Duration(socket) * every / 8)
	for i := range n {
		at := begin.Add(time.Duration(i) * every)
		// Go's timers are as fine as a millisecond.
		if wait := time.Until(at); wait > 0 {
			left := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&left, nil)
		}
		q := []byte{byte(i >> 8), byte(i), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for label := range strings.SplitSeq(fmt.Sprintf("n%04d.%s", (i*7+socket)%names, suffix), ".") {
			q = append(append(q, byte(len(label))), label...)
		}
		q = append(q, 0, 0, 1, 0, 1)
		mu.Lock()
		due[uint16(i)] = time.Now()
		mu.Unlock()
		if _, err := conn.Write(q); err != nil {
			return nil, err
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	<-received
	if len(took) == 0 {
		return nil, fmt.Errorf("%d of %d questions were answered", len(took), n)
	}
	for len(took) < n { // who asks again does so after a second at the earliest
		took = append(took, time.Second)
	}
	return took, nil
}

// cpuTime is what a process has used so far, and what it has started (what `ip netns exec` became).
func cpuTime(pid int) time.Duration {
	var ts unix.Timespec
	clock := int32(^pid<<3 | 2) // clock_getcpuclockid(3): CPUCLOCK_SCHED of the process
	sum := time.Duration(0)
	if err := unix.ClockGettime(clock, &ts); err == nil {
		sum = time.Duration(ts.Nano())
	}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is a good one
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				sum += cpuTime(child)
			}
		}
	}
	return sum
}
