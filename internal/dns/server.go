package dns

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/ratelimit"
)

// Options of a Server.
type Options struct {
	// Roots sign the certificates of upstreams by TLS; nil: the machine's.
	Roots *x509.CertPool
	// Now is the time since any moment; nil: since New.
	Now func() time.Duration
}

// Server answers the questions of zones.
type Server struct {
	log  *slog.Logger
	opts Options

	cache              *cache
	flights            *flights
	udpLimit, tcpLimit *ratelimit.Limiter
	waiting            waiting
	asking             chan struct{}

	mu        sync.Mutex
	config    Config
	serial    uint32
	zones     map[string]*zone
	upstreams map[Upstream]*upstream
	pools     map[string]*pool // by domain
	doors     map[door]*sockets
	closed    bool
}

// zone is a zone for as long as the server knows it.
type zone struct {
	id       uint16 // of this server's life; keys of the cache begin with it
	view     atomic.Pointer[view]
	counters *counters
}

// view is what a zone is answered by. It is not changed once it is made: what was
// answered from names is good for as long as it is the zone's.
type view struct {
	name      string
	clients   []netip.Prefix
	table     *Table
	forwards  map[string]*pool
	upstreams *pool
	own       []string // domains whose names may have inside addresses
	rate      int
	self      []netip.Addr
	counters  *counters
	records   Zone // that it was made of
}

// poolOf is who is asked for a name.
func (v *view) poolOf(name string) *pool {
	if domain, kind := v.table.decides(name); kind == cutForward {
		return v.forwards[domain]
	}
	return v.upstreams
}

func (v *view) exempt(name string) bool {
	return slices.ContainsFunc(v.own, func(domain string) bool { return below(name, domain) })
}

// may says whether a client is one of the zone's.
func (v *view) may(client netip.Addr) bool {
	for _, p := range v.clients {
		if p.Contains(client) {
			return true
		}
	}
	return client.IsLinkLocalUnicast()
}

// door is where a zone's sockets are. It is comparable.
type door struct {
	zone   string
	device string
	index  int
	addr   netip.Addr // zero: all addresses
	port   uint16
}

// sockets are those of a door.
type sockets struct {
	cancel context.CancelFunc
	udp    []*udpLoop
	tcp    *tcpLoop
	loops  sync.WaitGroup
}

// Failure is why a zone is not answered on a device.
type Failure struct {
	Zone   string
	Device string
	Err    error
}

// New makes a Server that answers nobody yet.
func New(log *slog.Logger, o Options) *Server {
	if o.Now == nil {
		begun := time.Now() // nobody sets the clock that this goes by
		o.Now = func() time.Duration { return time.Since(begun) }
	}
	return &Server{
		log: log, opts: o, cache: newCache(), flights: newFlights(),
		udpLimit: ratelimit.New(), tcpLimit: ratelimit.New(), asking: make(chan struct{}, mostAsked),
		waiting: waiting{by: map[netip.Addr]int{}},
		zones:   map[string]*zone{}, upstreams: map[Upstream]*upstream{}, pools: map[string]*pool{}, doors: map[door]*sockets{},
	}
}

func (s *Server) now() time.Duration { return s.opts.Now() }

// Apply has it answer as c says, and returns where it cannot. It asks nobody and
// waits for nobody. Sockets of doors that stay are kept.
func (s *Server) Apply(c Config) []Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if c.Port == 0 {
		c.Port = 53
	}
	before := s.config
	s.config = c
	same := s.usePools(c, before)
	s.cache.resize(c.CacheSize)
	wanted := map[door]bool{}
	var failures []Failure
	seen := map[string]bool{}
	for _, z := range c.Zones {
		seen[z.Name] = true
		s.useView(c, z, same)
		for _, device := range z.Devices {
			if err := s.serve(z.Name, device, c.Port, wanted); err != nil {
				failures = append(failures, Failure{z.Name, device.Name, err})
			}
		}
	}
	for at := range s.doors {
		if !wanted[at] {
			s.shut(at)
		}
	}
	maps.DeleteFunc(s.zones, func(name string, _ *zone) bool { return !seen[name] })
	return failures
}

// usePools makes the pools of servers, and says whether all else that all zones
// have in common is as before. What is known of a server stays.
func (s *Server) usePools(c, before Config) (same bool) {
	upstreams, pools := map[Upstream]*upstream{}, map[string]*pool{}
	make1 := func(domain string, servers []Upstream) {
		p := &pool{domain: domain, trusts: domain != ""}
		for _, u := range servers {
			if !u.Usable(c.Self, c.Port) {
				continue
			}
			up := upstreams[u]
			if up == nil {
				if up = s.upstreams[u]; up == nil {
					up = newUpstream(u, s.opts.Roots)
				}
				upstreams[u] = up
			}
			p.servers = append(p.servers, up)
		}
		if old := s.pools[domain]; old != nil && slices.Equal(old.servers, p.servers) {
			p = old
		}
		pools[domain] = p
	}
	make1("", c.Upstreams)
	for _, f := range c.Forwards {
		if f.Domain != "" {
			make1(f.Domain, f.Upstreams)
		}
	}
	same = maps.Equal(pools, s.pools) && c.Domain == before.Domain && c.ServiceDomain == before.ServiceDomain && c.NameServer == before.NameServer &&
		c.TTL == before.TTL && c.RatePerClient == before.RatePerClient && slices.Equal(c.Reverse, before.Reverse) &&
		slices.Equal(c.Rebinding, before.Rebinding) && slices.Equal(c.Self, before.Self)
	if !slices.Equal(c.Rebinding, before.Rebinding) || c.Domain != before.Domain || c.ServiceDomain != before.ServiceDomain {
		s.cache.clear() // what is held back is another thing now
	}
	for u, up := range s.upstreams {
		if upstreams[u] == nil {
			up.stream.close()
		}
	}
	s.upstreams, s.pools = upstreams, pools
	return same
}

// useView has a zone answered by its names, if they are not those of before.
func (s *Server) useView(c Config, from Zone, same bool) {
	z := s.zones[from.Name]
	if z == nil {
		s.serial++
		z = &zone{id: uint16(s.serial), counters: &counters{}}
		s.zones[from.Name] = z
	} else if old := z.view.Load(); same && slices.Equal(old.records.Clients, from.Clients) && sameRecords(old.records, from) {
		return
	}
	v := &view{
		name: from.Name, clients: from.Clients, upstreams: s.pools[""], forwards: map[string]*pool{}, records: from,
		own: slices.Concat([]string{c.Domain, c.ServiceDomain}, c.Rebinding), rate: c.RatePerClient, self: c.Self, counters: z.counters,
	}
	v.own = slices.DeleteFunc(v.own, func(domain string) bool { return domain == "" })
	var forwards []string
	for _, f := range c.Forwards {
		v.forwards[f.Domain] = s.pools[f.Domain]
		forwards = append(forwards, f.Domain)
	}
	v.table = NewTable(from.Records.Sets, TableOptions{
		Domains: []string{c.Domain, c.ServiceDomain}, Reverse: c.Reverse, Forwards: forwards, NameServer: c.NameServer,
		TTL: c.TTL, Serial: uint32(time.Now().Unix()),
	})
	z.view.Store(v)
}

func sameRecords(a, b Zone) bool {
	if len(a.Records.Sets) != len(b.Records.Sets) {
		return false
	}
	for i, r := range a.Records.Sets {
		if o := b.Records.Sets[i]; r.Name != o.Name || r.Type != o.Type || r.TTL != o.TTL || !slices.Equal(r.Data, o.Data) {
			return false
		}
	}
	return true
}

// serve opens what is not open yet of a device: all its addresses, or if these
// cannot be had, each.
func (s *Server) serve(zone string, device Device, port uint16, wanted map[door]bool) error {
	all := door{zone: zone, device: device.Name, index: device.Index, port: port}
	each := make([]door, 0, len(device.Addrs))
	single := false
	for _, addr := range device.Addrs {
		one := all
		one.addr = addr
		each = append(each, one)
		single = single || s.doors[one] != nil
	}
	if !single {
		wanted[all] = true
		if s.doors[all] != nil {
			return nil
		}
		err := s.open(all)
		if !errors.Is(err, errTaken) || len(each) == 0 {
			return err
		}
	}
	var errs []error
	for _, one := range each {
		wanted[one] = true
		if s.doors[one] == nil {
			errs = append(errs, s.open(one))
		}
	}
	return cmp.Or(errs...)
}

// open opens the sockets of a door: a UDP socket for each processor, up to four,
// among which the kernel spreads clients, and one for TCP.
func (s *Server) open(at door) (err error) {
	z := s.zones[at.zone]
	d := &sockets{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for range min(runtime.GOMAXPROCS(0), 4) {
		l, err := s.newUDPLoop(z, at)
		if err != nil {
			return fmt.Errorf("UDP: %w", reason(err))
		}
		d.udp = append(d.udp, l)
	}
	if d.tcp, err = s.newTCPLoop(z, at); err != nil {
		return fmt.Errorf("TCP: %w", reason(err))
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	for _, l := range d.udp {
		d.loops.Go(func() { l.run(ctx) })
	}
	d.loops.Go(func() { d.tcp.run(ctx) })
	s.doors[at] = d
	s.log.Info("dns open", "zone", at.zone, "interface", at.device, "address", at.addr)
	return nil
}

var errTaken = errors.New("another server has the port")

// reason is what an operator understands of an error.
func reason(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errTaken
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return errors.New("no permission to open the port")
	case errors.Is(err, syscall.ENODEV):
		return errors.New("there is no such interface")
	}
	return err
}

func (s *Server) shut(at door) {
	d := s.doors[at]
	delete(s.doors, at)
	d.close()
	s.log.Info("dns closed", "zone", at.zone, "interface", at.device, "address", at.addr)
}

// close ends the loops. Questions that wait for upstreams are not answered any more.
func (d *sockets) close() {
	if d.cancel != nil {
		d.cancel()
	}
	for _, l := range d.udp {
		_ = l.file.Close()
	}
	if d.tcp != nil {
		_ = d.tcp.listener.Close()
	}
	d.loops.Wait()
}

// Run serves until ctx ends, what Apply has said before included.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for at := range s.doors {
		s.shut(at)
	}
	for _, u := range s.upstreams {
		u.stream.close()
	}
	return ctx.Err()
}

// waiting counts the questions that wait for others.
type waiting struct {
	mu  sync.Mutex
	all int
	by  map[netip.Addr]int // client
}

// enter counts a question, unless there are too many.
func (w *waiting) enter(client netip.Addr) bool {
	who := clientKey(client)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all >= mostWaiting || w.by[who] >= mostWaitingPerClient {
		return false
	}
	w.all++
	w.by[who]++
	return true
}

func (w *waiting) leave(client netip.Addr) {
	who := clientKey(client)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all--
	if w.by[who]--; w.by[who] == 0 {
		delete(w.by, who)
	}
}

// refusals is how often a second a client is told that it may not ask here.
const refusals = 10

// clientKey stands for a client: for an IPv6 address that is its /64, all of
// which one machine can have, but for link-local ones.
func clientKey(client netip.Addr) netip.Addr {
	if client.Is4() || client.IsLinkLocalUnicast() {
		return client
	}
	p, err := client.Prefix(64)
	if err != nil {
		return client
	}
	return p.Addr()
}

func (s *Server) limited(by *ratelimit.Limiter, client netip.Addr, rate int, now time.Duration) bool {
	if rate == 0 {
		return false
	}
	return by.Allow(clientKey(client), ratelimit.Rate{N: rate, Per: time.Second}, 0, now) != ratelimit.OK
}

// elsewhere answers what others have to be asked for. A question that comes back
// from who is asked it ends there.
func (s *Server) elsewhere(ctx context.Context, v *view, q *query, client netip.Addr, reply Reply) *packed {
	if loop := s.flights.loop(q.cacheKey(), client, v.self); len(loop) > 0 {
		for _, u := range loop {
			u.looped()
		}
		return failed(v, q, v.poolOf(reply.Ask), s.now(), dns.RcodeServerFailure)
	}
	var count tally
	count.forwarded++
	v.counters.add(&count)
	return s.resolve(ctx, v, q, reply)
}
