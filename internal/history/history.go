// Package history remembers what the counters of frontends and backends were in
// the last minutes, so that status can say how much comes a second, and which
// share each backend got. It is given the time, and reads no clock.
//
// It costs about 600 bytes for a backend, and 400 for a frontend: ten thousand
// of each are 10 MB. What is not noted any more is forgotten at once.
package history

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

const (
	// Every is how often Note is to be called.
	Every = 2 * time.Second
	// RatesOver is how long rates are averaged over.
	RatesOver = 10 * time.Second
	// SharesOver is how long the shares that backends got are counted over, at most.
	SharesOver = 5 * time.Minute

	// atLeast is how long something has to be known before there is a rate: of a
	// shorter time it would jump.
	atLeast = time.Second
	// samples are kept for rates: one more than there are steps between them.
	samples = int(RatesOver/Every) + 1
	// Shares are counted in buckets, of which the last is being filled: what is told
	// is of the last 4 min 45 s to 5 min.
	bucketTime = 15 * time.Second
	buckets    = int(SharesOver / bucketTime)
)

// History is what is remembered. Its methods may be called at once.
type History struct {
	mu        sync.Mutex
	notes     uint64             // how often Note was called
	at        [samples]time.Time // when, for the last ones
	bucket    uint64             // which is being filled
	since     time.Time          // when that has begun
	frontends map[key]*frontend
}

// key tells a frontend from others, as long as status does. It says nothing of
// the data plane: what moves from one to the other is still the same door.
type key struct {
	protocol           edge.Protocol
	zone, listen, name string
	draining           bool // the other data plane may have the door again
}

func keyOf(f *status.Frontend) key { return key{f.Protocol, f.Zone, f.Listen, f.Name, f.Draining} }

type frontend struct {
	plane edge.DataPlane // which has counted
	seen  uint64         // the last Note that had it
	meter
	backends []backend
}

type backend struct {
	addr   string
	seen   uint64
	share  float64 // when it was last noted
	lately float64 // on average since the Note before that
	meter
	since  time.Time // when it was first noted
	first  uint64    // the first bucket
	latest uint64    // the last one that was filled
	counts [buckets]count
}

// count is what one bucket has counted while the backend was there.
type count struct {
	got    uint32  // its new connections
	all    uint32  // those of its frontend
	wanted float32 // those that it should have had
}

// reading is what counters are at one moment.
type reading struct{ connections, received, sent uint64 }

// meter adds up what counters have counted, whichever of them has begun anew
// meanwhile.
type meter struct {
	last reading          // the counters, as they were noted last
	sum  reading          // what they have counted since the first Note
	from uint64           // that Note
	sums [samples]reading // sum at the last Notes
}

// New remembers nothing yet.
func New() *History { return &History{frontends: map[key]*frontend{}} }

// Note remembers what the counters are now. Rows that are not noted any more are
// forgotten; a counter that is lower than before has begun anew.
func (h *History) Note(now time.Time, rows []status.Frontend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes++
	h.at[h.notes%uint64(samples)] = now
	switch passed := now.Sub(h.since); {
	case h.since.IsZero():
		h.since = now
	case passed >= bucketTime: // after a pause, several
		h.bucket += uint64(passed / bucketTime)
		h.since = h.since.Add(passed.Truncate(bucketTime))
	}
	for i := range rows {
		h.note(now, &rows[i])
	}
	for k, f := range h.frontends {
		if f.seen != h.notes {
			delete(h.frontends, k)
		}
	}
}

func (h *History) note(now time.Time, row *status.Frontend) {
	k := keyOf(row)
	f := h.frontends[k]
	if f != nil && f.seen == h.notes {
		return
	}
	if f == nil {
		f = &frontend{plane: row.DataPlane}
		f.start(h.notes, readingOf(row))
		h.frontends[k] = f
	}
	// The other data plane counts on its own: where it is has no meaning.
	moved := f.plane != row.DataPlane
	f.plane, f.seen = row.DataPlane, h.notes
	f.note(h.notes, readingOf(row), moved)
	// The kernel sends what comes by one IP family to backends of that family: each
	// is a whole.
	var all [2]uint64
	var shares [2]float64
	group := func(r *status.Backend) int {
		if f.plane == edge.DataPlaneNAT && strings.HasPrefix(r.Addr, "[") {
			return 1
		}
		return 0
	}
	fresh := make([]uint64, len(row.Backends))
	for i := range row.Backends {
		r := &row.Backends[i]
		b := f.of(r, i)
		if b == nil {
			i = min(i, len(f.backends))
			f.backends = slices.Insert(f.backends, i, backend{addr: r.Addr, seen: h.notes, share: r.Share, since: now, first: h.bucket, latest: h.bucket})
			f.backends[i].start(h.notes, backendReading(r))
			continue
		}
		b.seen = h.notes
		fresh[i] = b.note(h.notes, backendReading(r), moved)
		// It may have changed at any time since the last Note.
		b.share, b.lately = r.Share, (b.share+r.Share)/2
		all[group(r)] += fresh[i]
		shares[group(r)] += b.lately
	}
	for i := range row.Backends {
		b, of := f.of(&row.Backends[i], i), group(&row.Backends[i])
		switch {
		case b.from == h.notes: // what has come to it so far is not known
			b.count(h.bucket, 0, 0, 0)
		case shares[of] > 0:
			b.count(h.bucket, fresh[i], all[of], float64(all[of])*b.lately/shares[of])
		default:
			b.count(h.bucket, fresh[i], all[of], 0)
		}
	}
	if len(f.backends) > len(row.Backends) {
		f.backends = slices.DeleteFunc(f.backends, func(b backend) bool { return b.seen != h.notes })
	}
}

// of finds what is remembered of a backend, which is mostly where it was.
func (f *frontend) of(row *status.Backend, i int) *backend {
	if i < len(f.backends) && f.backends[i].addr == row.Addr {
		return &f.backends[i]
	}
	for i := range f.backends {
		if f.backends[i].addr == row.Addr {
			return &f.backends[i]
		}
	}
	return nil
}

func readingOf(f *status.Frontend) reading { return reading{f.Accepted, f.Received, f.Sent} }

func backendReading(b *status.Backend) reading { return reading{b.Total, b.Received, b.Sent} }

func (m *meter) start(note uint64, r reading) {
	m.from, m.last = note, r
}

// note returns how many connections have come since the last Note. Of counters
// that moved it is not known where they were.
func (m *meter) note(note uint64, r reading, moved bool) uint64 {
	if moved {
		m.last = r
	}
	before := m.sum.connections
	m.sum.connections += since(m.last.connections, r.connections)
	m.sum.received += since(m.last.received, r.received)
	m.sum.sent += since(m.last.sent, r.sent)
	m.last = r
	m.sums[note%uint64(samples)] = m.sum
	return m.sum.connections - before
}

// since is what has been counted since a counter was last read.
func since(last, now uint64) uint64 {
	if now < last { // it has begun anew
		return now
	}
	return now - last
}

// count adds to the bucket that is being filled.
func (b *backend) count(bucket, got, all uint64, wanted float64) {
	for ; b.latest < bucket; b.latest++ {
		b.counts[(b.latest+1)%uint64(buckets)] = count{}
	}
	c := &b.counts[bucket%uint64(buckets)]
	c.got = uint32(min(uint64(c.got)+got, math.MaxUint32))
	c.all = uint32(min(uint64(c.all)+all, math.MaxUint32))
	c.wanted += float32(wanted)
}

// Fill sets the Rates and Got of the rows, which may be those of a later moment
// than the last Note.
func (h *History) Fill(now time.Time, rows []status.Frontend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range rows {
		row := &rows[i]
		f := h.frontends[keyOf(row)]
		if f == nil || f.plane != row.DataPlane {
			continue
		}
		row.Rates = h.rates(now, &f.meter, readingOf(row))
		for j := range row.Backends {
			if b := f.of(&row.Backends[j], j); b != nil {
				row.Backends[j].Rates = h.rates(now, &b.meter, backendReading(&row.Backends[j]))
				row.Backends[j].Got = h.got(now, b)
			}
		}
	}
}

// rates are nil as long as too little is known. Status may be a little older
// than the last Note, where the kernel was asked once for several questions: then
// nothing has come since.
func (h *History) rates(now time.Time, m *meter, r reading) *status.Rates {
	from := m.from
	if oldest := h.notes + 1 - min(h.notes, uint64(samples)); from < oldest {
		from = oldest
	}
	for from < h.notes && now.Sub(h.at[from%uint64(samples)]) > RatesOver+Every/2 {
		from++ // it was noted late
	}
	over := now.Sub(h.at[from%uint64(samples)])
	if over < atLeast {
		return nil
	}
	before := m.sums[from%uint64(samples)]
	perSecond := func(before, sum, last, now uint64) float64 {
		if now > last {
			sum += now - last
		}
		return float64(sum-before) / over.Seconds()
	}
	return &status.Rates{
		Over:        status.Duration(over.Round(time.Second)),
		Connections: perSecond(before.connections, m.sum.connections, m.last.connections, r.connections),
		Received:    perSecond(before.received, m.sum.received, m.last.received, r.received),
		Sent:        perSecond(before.sent, m.sum.sent, m.last.sent, r.sent),
	}
}

// got is nil where no connections came that somebody could have got.
func (h *History) got(now time.Time, b *backend) *status.Got {
	first := b.first
	over := now.Sub(b.since)
	if oldest := h.bucket + 1 - min(h.bucket+1, uint64(buckets)); first < oldest {
		first = oldest
		over = now.Sub(h.since) + bucketTime*time.Duration(buckets-1)
	}
	got, all, wanted := uint64(0), uint64(0), 0.0
	for i := first; i <= b.latest; i++ {
		c := b.counts[i%uint64(buckets)]
		got += uint64(c.got)
		all += uint64(c.all)
		wanted += float64(c.wanted)
	}
	if all == 0 {
		return nil
	}
	return &status.Got{
		Over: status.Duration(over.Round(time.Second)), Connections: got, Of: all,
		Share: float64(got) / float64(all), Wanted: wanted / float64(all),
	}
}
