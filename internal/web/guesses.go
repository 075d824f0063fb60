package web

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// So many wrong tokens a client may show in guessTime; then it is refused for
	// as long, right or wrong.
	maxGuesses = 10
	guessTime  = time.Minute
	// So many clients are remembered. Whoever has more addresses guesses faster,
	// and still none of 2^96.
	maxGuessers = 1024
)

// guesses counts the wrong tokens of each client.
type guesses struct {
	mu sync.Mutex
	by map[netip.Addr]guesser
}

type guesser struct {
	wrong int
	until time.Time // when they are forgotten
}

func newGuesses() *guesses { return &guesses{by: map[netip.Addr]guesser{}} }

// tooMany says whether a client is refused.
func (g *guesses) tooMany(client netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.by[client]
	return c.wrong >= maxGuesses && now.Before(c.until)
}

// wrong notes a wrong token, and says whether it was one too many.
func (g *guesses) wrong(client netip.Addr, now time.Time) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, known := g.by[client]
	if !known && len(g.by) >= maxGuessers {
		g.forget(now)
	}
	if !now.Before(c.until) {
		c = guesser{until: now.Add(guessTime)}
	}
	if c.wrong++; c.wrong == maxGuesses {
		c.until = now.Add(guessTime)
	}
	g.by[client] = c
	return c.wrong == maxGuesses
}

// forget makes room: those whose time is over go, or else any.
func (g *guesses) forget(now time.Time) {
	for client, c := range g.by {
		if !now.Before(c.until) {
			delete(g.by, client)
		}
	}
	for client := range g.by {
		if len(g.by) < maxGuessers {
			return
		}
		delete(g.by, client)
	}
}
