package leases

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

var begin = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func lease(n int, mac string) edge.Lease {
	return edge.Lease{
		Zone: "home", Addr: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), MAC: mac, Hostname: "host-" + mac,
		Begun: begin, Expires: begin.Add(time.Duration(n+1) * time.Hour),
	}
}

// keep commits and waits until it is done.
func keep(t *testing.T, s *Store, changes ...edge.Lease) error {
	t.Helper()
	var result error
	called := false
	s.Commit(changes, func(err error) { result, called = err, true })
	s.flush()
	if !called {
		t.Fatal("nobody was told")
	}
	return result
}

func open(t *testing.T, dir string) (*Store, []edge.Lease) {
	t.Helper()
	s, all, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, all
}

func same(a, b []edge.Lease) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

func TestWhatIsKeptIsThereTheNextTime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "anew")
	s, all := open(t, dir)
	if len(all) > 0 {
		t.Fatalf("an empty directory has %v", all)
	}
	if err := keep(t, s, lease(1, "a"), lease(2, "b"), lease(3, "c")); err != nil {
		t.Fatal(err)
	}
	renewed := lease(2, "b")
	renewed.Expires = renewed.Expires.Add(time.Hour)
	if err := keep(t, s, renewed, edge.Lease{Addr: lease(1, "").Addr}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	s.Close()
	if err := keep(t, s, lease(9, "z")); !errors.Is(err, errClosed) {
		t.Errorf("a closed store: %v", err)
	}
	s, all = open(t, dir)
	if want := []edge.Lease{renewed, lease(3, "c")}; !same(all, want) || s.Damage() != "" {
		t.Errorf("got %v, %q, want %v", all, s.Damage(), want)
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestAFileIsReadAsFarAsItGoes cuts a file at each byte: what was written before
// is there, and what is half there is not, without complaint.
func TestAFileIsReadAsFarAsItGoes(t *testing.T) {
	data := []byte(header)
	ends := []int{len(data)}
	var want []edge.Lease
	for i := range 4 {
		want = append(want, lease(i, "a"))
		data = appendLine(data, want[i])
		ends = append(ends, len(data))
	}
	for cut := range len(data) + 1 {
		c, err := Decode(data[:cut])
		n := 0
		for n+1 < len(ends) && ends[n+1] <= cut {
			n++
		}
		if err != nil || c.Damaged > 0 || !same(c.Leases, want[:n]) {
			t.Fatalf("cut at %d: %v, %v, want %d leases", cut, c, err, n)
		}
	}
}

func TestDamageInTheMiddleCostsItsLine(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	keep(t, s, lease(1, "a"), lease(2, "b"), lease(3, "c"))
	s.Close()
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte("host-b"), []byte("host-x"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s, all := open(t, dir)
	if want := []edge.Lease{lease(1, "a"), lease(3, "c")}; !same(all, want) || s.Damage() != "1 lines of the file of leases are damaged" {
		t.Errorf("got %v, %q", all, s.Damage())
	}
}

func TestAFileOfAnotherVersionIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	if err := os.WriteFile(path, []byte("gatehouse-leases 2\nsomething\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(dir); !errors.Is(err, errVersion) {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "gatehouse-leases 2\nsomething\n" {
		t.Errorf("it is %q now", data)
	}
}

// TestManyAtOnceWaitForTheDiskTogether: a thousand machines that ask at once are
// not a thousand times the disk's time.
func TestManyAtOnceWaitForTheDiskTogether(t *testing.T) {
	s, _ := open(t, t.TempDir())
	before, told := s.syncs, 0
	for i := range 1000 {
		s.Commit([]edge.Lease{lease(i, "a")}, func(err error) {
			if err != nil || told != i {
				t.Errorf("%d was told after %d: %v", i, told, err)
			}
			told++
		})
	}
	s.flush()
	if told != 1000 || s.syncs-before != 1 {
		t.Errorf("%d were told after %d waits, want 1000 after 1", told, s.syncs-before)
	}
}

func TestRunWritesWhatComes(t *testing.T) {
	s := &Store{disk: newFakeDisk(), wake: make(chan struct{}, 1)}
	synctest.Test(t, func(t *testing.T) {
		s.wake = make(chan struct{}, 1)
		if _, err := s.start(nil); err != nil {
			t.Fatal(err)
		}
		go s.Run(t.Context())
		told := 0
		for i := range 10 {
			s.Commit([]edge.Lease{lease(i, "a")}, func(error) { told++ })
			synctest.Wait()
			if told != i+1 {
				t.Fatalf("%d of %d were told", told, i+1)
			}
		}
	})
}

// TestTheFileDoesNotGrowForEver renews a few leases very often.
func TestTheFileDoesNotGrowForEver(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	for i := range 5 * slack {
		l := lease(i%3, "a")
		l.Expires = l.Expires.Add(time.Duration(i))
		s.Commit([]edge.Lease{l}, func(error) {})
		if i%100 == 0 {
			s.flush()
		}
	}
	s.flush()
	info, err := os.Stat(filepath.Join(dir, fileName))
	if most := int64(2 * slack * 300); err != nil || info.Size() > most {
		t.Errorf("%d bytes, want %d at most, %v", info.Size(), most, err)
	}
}

// TestADiskThatFailsIsNotBelieved: nobody is told of what may not be there, and
// once the disk works again everything is.
func TestADiskThatFailsIsNotBelieved(t *testing.T) {
	for _, what := range []string{"write", "sync", "create", "rename"} {
		t.Run(what, func(t *testing.T) {
			d := newFakeDisk()
			s := &Store{disk: d, wake: make(chan struct{}, 1)}
			if _, err := s.start(nil); err != nil {
				t.Fatal(err)
			}
			if err := keep(t, s, lease(1, "a")); err != nil {
				t.Fatal(err)
			}
			d.fails = "sync" // has it write anew the next time
			if err := keep(t, s, lease(2, "b")); err == nil {
				t.Fatal("a lease that is not on the disk is one")
			}
			d.fails = what
			if err := keep(t, s, lease(3, "c")); err == nil {
				t.Fatal("a lease that is not on the disk is one")
			}
			d.fails = ""
			if err := keep(t, s, lease(4, "d")); err != nil {
				t.Fatal(err)
			}
			c, err := Decode(d.durable()[fileName])
			if want := []edge.Lease{lease(1, "a"), lease(2, "b"), lease(3, "c"), lease(4, "d")}; err != nil || !same(c.Leases, want) {
				t.Errorf("got %v, %v", c, err)
			}
		})
	}
}

// fakeDisk forgets what it was not told to keep, as a disk does when the power
// goes: of a file any number of bytes that were written since the last Sync are
// there, and a name lasts when replace has returned.
type fakeDisk struct {
	fails string
	names map[string]*fakeFile // those that last
	temp  map[string]*fakeFile
}

type fakeFile struct {
	disk   *fakeDisk
	data   []byte
	synced int
}

func newFakeDisk() *fakeDisk {
	return &fakeDisk{names: map[string]*fakeFile{}, temp: map[string]*fakeFile{}}
}

var errFake = errors.New("input/output error")

func (d *fakeDisk) create(name string) (file, error) {
	if d.fails == "create" {
		return nil, errFake
	}
	f := &fakeFile{disk: d}
	d.temp[name] = f
	return f, nil
}

func (d *fakeDisk) replace(from, to string) error {
	if d.fails == "rename" {
		return errFake
	}
	d.names[to] = d.temp[from]
	return nil
}

// durable is what is there for certain.
func (d *fakeDisk) durable() map[string][]byte {
	all := map[string][]byte{}
	for name, f := range d.names {
		all[name] = f.data[:f.synced]
	}
	return all
}

func (f *fakeFile) Write(b []byte) (int, error) {
	if f.disk.fails == "write" {
		f.data = append(f.data, b[:len(b)/2]...)
		return len(b) / 2, errFake
	}
	f.data = append(f.data, b...)
	return len(b), nil
}

func (f *fakeFile) Sync() error {
	if f.disk.fails == "sync" {
		return errFake
	}
	f.synced = len(f.data)
	return nil
}

func (f *fakeFile) Close() error { return nil }

// TestPowerLossAtAnyMomentLosesNoLease plays a server for a while, and has the
// power go after each step, with all that the disk may have then: whatever was
// told to somebody is there, and nothing is there that was never said.
func TestPowerLossAtAnyMomentLosesNoLease(t *testing.T) {
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 1))
		d := newFakeDisk()
		s := &Store{disk: d, wake: make(chan struct{}, 1)}
		if _, err := s.start(nil); err != nil {
			t.Fatal(err)
		}
		told, said := map[netip.Addr]edge.Lease{}, map[netip.Addr][]edge.Lease{}
		check := func(when string) {
			t.Helper()
			f := d.names[fileName]
			if f == nil {
				t.Fatal("no file")
			}
			for range 5 {
				end := f.synced + random.IntN(len(f.data)-f.synced+1)
				c, err := Decode(f.data[:end])
				if err != nil || c.Damaged > 0 {
					t.Fatalf("seed %d, %s: %v, %v", seed, when, c, err)
				}
				have := map[netip.Addr]edge.Lease{}
				for _, l := range c.Leases {
					have[l.Addr] = l
					if !slices.Contains(said[l.Addr], l) {
						t.Fatalf("seed %d, %s: %v was never said", seed, when, l)
					}
				}
				for addr, l := range told {
					// A later one may be there already.
					later := said[addr][slices.Index(said[addr], l):]
					if !slices.Contains(later, have[addr]) {
						t.Fatalf("seed %d, %s: %v is lost, there is %v", seed, when, l, have[addr])
					}
				}
			}
		}
		for step := range 120 {
			d.fails = ""
			if random.IntN(20) == 0 {
				d.fails = []string{"write", "sync", "create", "rename"}[random.IntN(4)]
			}
			for range random.IntN(5) {
				l := lease(random.IntN(12), fmt.Sprint(step))
				l.Expires = l.Expires.Add(time.Duration(random.IntN(1 << 30)))
				said[l.Addr] = append(said[l.Addr], l)
				s.Commit([]edge.Lease{l}, func(err error) {
					if err == nil {
						told[l.Addr] = l
					}
				})
			}
			check("before the disk")
			s.flush()
			check("after the disk")
			if random.IntN(50) == 0 { // another process goes on
				data := d.names[fileName].data[:d.names[fileName].synced]
				d.fails = ""
				s = &Store{disk: d, wake: make(chan struct{}, 1)}
				if _, err := s.start(data); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	data := []byte(header)
	for i := range 3 {
		data = appendLine(data, lease(i, "a"))
	}
	f.Add(data)
	f.Add([]byte(header))
	f.Add([]byte("gatehouse-leases 7\n"))
	f.Add([]byte(strings.Repeat("\x00", 100)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode(data)
		if err != nil {
			return
		}
		// What is read is what is written.
		all := map[netip.Addr]edge.Lease{}
		again := []byte(header)
		for _, l := range c.Leases {
			all[l.Addr] = l
			again = appendLine(again, l)
		}
		d, err := Decode(again)
		if err != nil || d.Damaged > 0 || len(d.Leases) != len(c.Leases) || len(all) != len(c.Leases) {
			t.Fatalf("%v, %v", d, err)
		}
		// What follows a good line cannot take it away unseen: only its own address's.
		longer, err := Decode(append(slices.Clone(again), "\x00\x00 half a line"...))
		if err != nil || longer.Damaged > 0 || !reflect.DeepEqual(longer.Leases, d.Leases) {
			t.Fatalf("%v, %v", longer, err)
		}
	})
}
