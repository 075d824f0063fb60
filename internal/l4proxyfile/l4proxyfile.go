// Package l4proxyfile writes the configuration file of l4proxy (v1), for those
// who keep l4proxy and want its file to follow the cluster.
//
//	data := l4proxyfile.Render(state.Frontends)
//	changed, err := l4proxyfile.WriteFile("/etc/l4proxy.yaml", data)
package l4proxyfile

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"e13.dev/gatehouse/internal/edge"
)

const header = `# Written by gatehouse from the Services of a cluster, and written again whenever
# they change. What is edited here is lost; edit the Services.
apiVersion: v1
`

// defaultInterval is written where there are no probes. There has to be
// one: l4proxy does not survive a healthInterval of 0.
const defaultInterval = 5 * time.Second

// Render returns the file for the frontends, in an order of its own.
//
// What the format has no words for is left out: protocols other than TCP,
// backends without weight, and frontends that have no other. The file would
// open those to nobody, or to more than was asked for. Weights are lost.
func Render(frontends []edge.Frontend) []byte {
	var entries []entry
	for _, f := range frontends {
		if e := newEntry(f); f.Protocol == edge.TCP && len(e.backends) > 0 {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, entry.compare)
	var b bytes.Buffer
	b.WriteString(header)
	if len(entries) == 0 {
		b.WriteString("frontends: []\n")
		return b.Bytes()
	}
	b.WriteString("frontends:\n")
	for _, e := range entries {
		e.write(&b)
	}
	return b.Bytes()
}

// entry is a frontend as l4proxy has them.
type entry struct {
	listen   edge.Listen
	name     string
	backends []netip.AddrPort
	interval time.Duration // 0: no probes
	timeout  time.Duration
}

func newEntry(f edge.Frontend) entry {
	e := entry{listen: f.Listen, name: f.Name, interval: f.Health.Interval, timeout: f.IdleTimeout}
	for _, b := range f.Backends {
		if b.Weight > 0 {
			e.backends = append(e.backends, netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port()))
		}
	}
	slices.SortFunc(e.backends, netip.AddrPort.Compare)
	e.backends = slices.Compact(e.backends)
	return e
}

func (e entry) compare(o entry) int {
	return cmp.Or(
		cmp.Compare(e.listen.Port, o.listen.Port),
		cmp.Compare(e.listen.Device, o.listen.Device),
		e.listen.Addr.Compare(o.listen.Addr),
		cmp.Compare(e.name, o.name),
	)
}

func (e entry) write(b *bytes.Buffer) {
	fmt.Fprintf(b, "  # %s\n", strings.Map(printable, e.name))
	fmt.Fprintf(b, "  - bind: %s\n", strconv.Quote(e.bind()))
	fmt.Fprintf(b, "    healthInterval: %d\n", seconds(cmp.Or(e.interval, defaultInterval)))
	if e.timeout > 0 {
		fmt.Fprintf(b, "    timeout: %s\n", e.timeout)
	}
	b.WriteString("    backends:\n")
	for _, a := range e.backends {
		fmt.Fprintf(b, "      - address: %s\n", strconv.Quote(a.String()))
	}
}

// bind is the listen address in l4proxy's words. It knows interfaces or
// addresses; the address is the narrower of both.
func (e entry) bind() string {
	l := e.listen
	if l.Addr.IsValid() {
		l.Device = ""
	}
	return l.String()
}

// seconds rounds up: checking less often than asked is the lesser harm, and
// 0 is none at all.
func seconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// printable keeps a name from ending the comment that it stands in.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}
