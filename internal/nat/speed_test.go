package nat

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// many is as many doors, with six slots each.
func many(n int) State {
	var s State
	for i := range n {
		f := frontend(edge.TCP, uint16(i%60000+1), "10.0.0.101:80*1", "10.0.0.102:80*2", "10.0.0.103:80*3")
		f.Name = fmt.Sprintf("shop/%05d", i)
		if i >= 60000 {
			f.Listen.Device = "eth2"
		}
		for j := range f.Backends {
			f.Backends[j].Addr = netip.AddrPortFrom(f.Backends[j].Addr.Addr(), uint16(10000+i%50000))
		}
		s.Frontends = append(s.Frontends, f)
	}
	return s
}

// manyAddresses is as many doors at addresses of their own, of both families.
func manyAddresses(n int) State {
	s := many(n)
	for i := range s.Frontends {
		f := &s.Frontends[i]
		f.Listen.Port, f.Listen.Addr = 80, netip.AddrFrom4([4]byte{10, 11, byte(i / 2 >> 8), byte(i / 2)})
		if i%2 == 1 {
			f.Listen.Addr = netip.AddrFrom16([16]byte{0xfd, 0x12, 14: byte(i / 2 >> 8), 15: byte(i / 2)})
			for j := range f.Backends {
				v4 := f.Backends[j].Addr
				f.Backends[j].Addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x44, 15: v4.Addr().As4()[3]}), v4.Port())
			}
		}
	}
	return s
}

// How long a full table takes, and how long a change of one backend does in it.
// It fails where that is by far too long, and prints how long it is.
func TestNetnsSpeed(t *testing.T) { testSpeed(t, many) }

func TestNetnsSpeedOfAddresses(t *testing.T) { testSpeed(t, manyAddresses) }

func testSpeed(t *testing.T, many func(int) State) {
	netnstest.Run(t, func() {
		for _, n := range []int{1, 1000, 10000} {
			a := New()
			s := many(n)
			measure := func(what string, limit time.Duration, do func()) {
				t.Helper()
				before, began := cpu(), time.Now()
				do()
				took, used := time.Since(began), cpu()
				t.Logf("%6d doors: %-22s %8.1f ms, CPU %7.1f ms here, %7.1f ms in nft", n, what, ms(took), ms(used[0]-before[0]), ms(used[1]-before[1]))
				if took > limit {
					t.Errorf("%d doors: %s took %v", n, what, took)
				}
			}
			measure("all", 30*time.Second, func() { apply(t, a, s, true) })
			measure("nothing", time.Second, func() { apply(t, a, s, false) })
			const changes = 20
			var most time.Duration
			measure(fmt.Sprintf("%d changes", changes), changes*time.Second, func() {
				for i := range changes {
					f := &s.Frontends[(i*7919)%n]
					f.Backends[0].Addr = netip.AddrPortFrom(f.Backends[0].Addr.Addr(), uint16(i+1))
					f.Backends[2].Weight = 4 - f.Backends[2].Weight%2 // there are as many slots more, or fewer
					began := time.Now()
					apply(t, a, s, true)
					most = max(most, time.Since(began))
				}
			})
			t.Logf("%6d doors: the slowest change %.1f ms", n, ms(most))
			measure("read and compare", 10*time.Second, func() { verify(t, a, false) })
			measure("adopt", 10*time.Second, func() { apply(t, New(), s, false) })
			measure("replace", 30*time.Second, func() { nftCommand(t, "add chain inet gatehouse mine"); verify(t, a, true) })
			measure("remove", 10*time.Second, func() {
				if removed, err := a.Remove(t.Context()); !removed || err != nil {
					t.Fatalf("Remove = %t, %v", removed, err)
				}
			})
		}
	})
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpu is the time that this process and its children have used.
func cpu() (used [2]time.Duration) {
	for i, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			used[i] = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return used
}
