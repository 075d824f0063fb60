package dns

import (
	"net/netip"
	"slices"
	"sync"
)

// flights are the questions that upstreams are asked just now.
type flights struct {
	mu    sync.Mutex
	byKey map[string]*flight
	// names counts them by name and type alone, with who is asked.
	names map[string][]*pool
}

// flight is one question. Its answer is there once done is closed.
type flight struct {
	done   chan struct{}
	answer *packed
}

func newFlights() *flights {
	return &flights{byKey: map[string]*flight{}, names: map[string][]*pool{}}
}

// join asks, or waits with those who ask the same already. A flight goes on
// though nobody waits for it any more: what comes of it is kept.
func (f *flights) join(key []byte, of *pool, ask func() *packed) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.byKey[string(key)]; now != nil {
		return now
	}
	k, name := string(key), string(key[3:])
	one := &flight{done: make(chan struct{})}
	f.byKey[k], f.names[name] = one, append(f.names[name], of)
	go func() {
		one.answer = ask()
		f.mu.Lock()
		delete(f.byKey, k)
		at := slices.Index(f.names[name], of)
		if f.names[name] = slices.Delete(f.names[name], at, at+1); len(f.names[name]) == 0 {
			delete(f.names, name)
		}
		f.mu.Unlock()
		close(one.done)
	}()
	return one
}

// loop returns the upstreams through which a question has come back that is
// being asked: who sends it is one of those that were asked, or this machine
// itself, where another resolver runs.
func (f *flights) loop(key []byte, client netip.Addr, self []netip.Addr) []*upstream {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*upstream
	for _, p := range f.names[string(key[3:])] {
		for _, u := range p.servers {
			at := u.Addr.Addr().Unmap()
			if at == client || slices.Contains(self, client) && (at.IsLoopback() || slices.Contains(self, at)) {
				list = append(list, u)
			}
		}
	}
	return list
}
