package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/nft"
)

const (
	// transparentMark is the bit of a packet's mark that says: to a transparent
	// socket of this machine. It is one that others who use few bits leave alone:
	// kube-proxy has 0x4000 and 0x8000, the portmap plugin of CNI 0x2000, Tailscale
	// 0xff0000, Calico 0xffff0000, Cilium 0x0f00 and the upper half (and 0xf000 of
	// what its nodes encrypt by IPsec).
	transparentMark = 0x1000

	// How soon it is noticed that something of it is gone, if nobody says so.
	transparentInterval = 10 * time.Second
	// What is gone is mended at once; what somebody takes away again, no sooner than
	// this.
	transparentPace = time.Second
)

// TransparentDelivery is what marks are routed by. The number of the rule and
// that of its table are the mark's: 4096. It is before main's (32766), of course, and before Tailscale's (5210 to 5270), whose
// table may have routes to clients.
var TransparentDelivery = host.Delivery{Mark: transparentMark, Priority: transparentMark, Table: transparentMark}

// transparency is what the machine needs for transparent connections: answers
// to clients' addresses have to be marked (nft) and delivered here (host). It is
// there as long as anybody needs it: a process in which a frontend is
// transparent has a claim, and a transparent connection is a claim by itself,
// whichever process it belongs to. Who finds no claim takes all of it away.
type transparency struct {
	log    *slog.Logger
	needed chan struct{} // closed when it is wanted for the first time

	mu       sync.Mutex
	nft      *nft.Applier
	claim    io.Closer // not nil: a frontend is transparent
	settled  bool      // what there is was found to be what should be
	there    bool      // it was, when last looked
	mended   bool      // something of it was not
	problems []edge.Problem
	failure  string // why there is no transparency
	once     sync.Once
}

func newTransparency(log *slog.Logger) *transparency {
	return &transparency{log: log, needed: make(chan struct{}), nft: nft.New()}
}

// apply sees that the machine has what is needed, or has it not. failure says
// why it cannot be had; nobody is to be served transparently then.
func (t *transparency) apply(ctx context.Context, wanted bool) (failure string, problems []edge.Problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if wanted != (t.claim != nil) || t.failure != "" {
		t.settled = false
	}
	if !t.settled {
		t.changeLocked(ctx, wanted)
	}
	return t.failure, slices.Clone(t.problems)
}

// failing is what apply has said last.
func (t *transparency) failing() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failure
}

// look compares again, and mends. It says whether it has, and whether there is
// news.
func (t *transparency) look(ctx context.Context) (mended, news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.claim == nil && !t.there {
		return false, false // somebody else's, if there is any
	}
	t.mended = false
	failure, problems := t.failure, t.problems
	t.changeLocked(ctx, t.claim != nil)
	return t.mended, t.failure != failure || !slices.Equal(t.problems, problems)
}

func (t *transparency) changeLocked(ctx context.Context, wanted bool) {
	var err error
	if wanted {
		t.once.Do(func() { close(t.needed) })
		err = t.setUpLocked(ctx)
	} else {
		err = t.takeDownLocked(ctx, false)
	}
	if ctx.Err() != nil {
		return // it is over: the error says nothing of the machine
	}
	t.failure, t.problems, t.settled = "", nil, err == nil
	if err != nil {
		p := explainTransparency(err)
		t.problems = append(t.problems, p)
		if wanted {
			t.failure = p.What
		}
	}
	if !wanted {
		return
	}
	for _, setting := range host.Undeliverable() {
		t.problems = append(t.problems, edge.Problem{
			Object: "transparent", What: setting + " is 1: the kernel drops what backends answer to clients' own IPv4 addresses",
			Remedy: "set it to 0 (wg-quick sets it; a rule of its own in its configuration, or Table = off, does without)",
		})
	}
}

func (t *transparency) setUpLocked(ctx context.Context) error {
	if t.claim == nil {
		// First of all: whoever takes it away meanwhile finds the claim.
		claim, err := host.Claim()
		if err != nil {
			return err
		}
		t.claim = claim
	}
	routes, err := TransparentDelivery.Apply()
	if err != nil {
		return err
	}
	rules, err := t.nft.Apply(ctx, nft.State{TransparentMark: transparentMark})
	if err != nil {
		return err
	}
	t.mended = t.there && (routes || rules)
	switch {
	case routes && rules && !t.there:
		t.log.Info("transparent relaying set up", "mark", fmt.Sprintf("%#x", transparentMark), "routing_table", TransparentDelivery.Table)
	case routes || rules:
		t.log.Warn("transparent relaying mended: somebody had changed it", "routes", routes, "nftables", rules)
	}
	t.there = true
	return nil
}

// takeDownLocked is called once more with last when this process has no
// connection left.
func (t *transparency) takeDownLocked(ctx context.Context, last bool) error {
	if t.claim != nil {
		_ = t.claim.Close()
		t.claim = nil
	}
	// The routes tell whether there is anything: whoever is never transparent
	// needs neither the nft command nor a right.
	var err error
	if t.there, err = TransparentDelivery.Present(); err != nil || !t.there {
		return err
	}
	// Another process, or connections that were made before: it is looked at again.
	// Where the kernel does not tell, it could be those of this one.
	if used, err := host.TransparentSockets(); used || err != nil && !last {
		return nil
	}
	// The table first, since it is not looked for without the routes. Without nft
	// there was none to begin with.
	if _, err := t.nft.Apply(ctx, nft.State{}); err != nil && !errors.Is(err, nft.ErrNotInstalled) {
		return err
	}
	if _, err := TransparentDelivery.Remove(); err != nil {
		return err
	}
	t.there = false
	t.log.Info("transparent relaying taken down: nothing needs it")
	return nil
}

// leave is for the end of the process, after its last connection.
func (t *transparency) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.claim == nil && !t.there {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), transparentInterval)
	defer cancel()
	if err := t.takeDownLocked(ctx, true); err != nil {
		t.log.Error("transparent relaying not taken down", "err", err)
	}
}

// run looks after it until ctx ends, and calls changed when there is news.
func (t *transparency) run(ctx context.Context, changed func()) error {
	lost := make(chan struct{}, 1)
	tell := func() {
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	var watchers sync.WaitGroup
	defer watchers.Wait()
	needed := t.needed
	tick := time.NewTicker(transparentInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-needed:
			needed = nil
			watchTable := func(ctx context.Context, lost func()) error { return nft.Watch(ctx, nft.Table, lost) }
			for _, watch := range []func(context.Context, func()) error{watchTable, host.WatchRules} {
				watchers.Go(func() {
					if err := watch(ctx, tell); err != nil && ctx.Err() == nil {
						t.log.Warn("changes of rules are noticed late", "err", err, "interval", transparentInterval.String())
					}
				})
			}
			continue
		case <-lost:
		case <-tick.C:
		}
		mended, news := t.look(ctx)
		if news {
			changed()
		}
		if !mended {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(transparentPace):
		}
	}
}

// explainTransparency says what would be right.
func explainTransparency(err error) edge.Problem {
	p := edge.Problem{Object: "transparent", What: err.Error(), Remedy: "it is tried again"}
	switch {
	case errors.Is(err, nft.ErrNotInstalled):
		p.What, p.Remedy = nft.ErrNotInstalled.Error(), "apt install nftables, or what your distribution calls it"
	case errors.Is(err, nft.ErrNotPermitted), errors.Is(err, host.ErrNotPermitted):
		p.Remedy = "it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"
	case strings.HasPrefix(p.What, "nft: apply:") && strings.Contains(p.What, "No such file or directory"):
		p.Remedy = "the kernel seems to lack nft_socket (CONFIG_NFT_SOCKET): modprobe nft_socket"
	}
	return p
}
