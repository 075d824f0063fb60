package ra

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// said is an advertisement in a line, as far as addresses go.
func said(m message) string {
	out := []string{fmt.Sprintf("router %s", m.lifetime)}
	for _, p := range m.prefixes {
		out = append(out, fmt.Sprintf("%s %s/%s", p.Prefix.Prefix, p.Valid, p.Preferred))
	}
	for _, a := range m.dns {
		out = append(out, fmt.Sprintf("dns %s", a))
	}
	for _, a := range m.goneDNS {
		out = append(out, fmt.Sprintf("no dns %s", a))
	}
	out = append(out, m.search...)
	for _, a := range m.goneSearch {
		out = append(out, "no "+a)
	}
	return strings.Join(out, ", ")
}

func content(lifetime time.Duration, dns, search string, prefixes ...string) Content {
	c := Content{Lifetime: lifetime}
	if dns != "" {
		c.DNS = []netip.Addr{netip.MustParseAddr(dns)}
	}
	if search != "" {
		c.Search = []string{search}
	}
	for _, p := range prefixes {
		c.Prefixes = append(c.Prefixes, Prefix{netip.MustParsePrefix(p), 24 * time.Hour, 4 * time.Hour})
	}
	return c
}

// A prefix that has gone is deprecated at once, for two hours that run; servers
// and domains that have gone are taken back for as long as anybody may have them.
func TestWhatWasToldIsTakenBack(t *testing.T) {
	m, now := newMemory(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const half = 30 * time.Minute
	for _, step := range []struct {
		after   time.Duration
		content Content
		last    bool
		want    string
	}{
		{0, content(half, "fd00::1", "a.example", "fd00::/64"), false, "router 30m0s, fd00::/64 24h0m0s/4h0m0s, dns fd00::1, a.example"},
		{time.Hour, content(half, "fd01::1", "b.example", "fd01::/64"), false, "" +
			"router 30m0s, fd01::/64 24h0m0s/4h0m0s, fd00::/64 2h0m0s/0s, dns fd01::1, b.example"}, // nobody was told for an hour: DNS is forgotten
		{10 * time.Minute, content(half, "fd01::2", "b.example", "fd01::/64"), false, "" +
			"router 30m0s, fd01::/64 24h0m0s/4h0m0s, fd00::/64 1h50m0s/0s, dns fd01::2, no dns fd01::1, b.example"},
		{10 * time.Minute, content(half, "fd01::2", "", "fd01::/64"), false, "" +
			"router 30m0s, fd01::/64 24h0m0s/4h0m0s, fd00::/64 1h40m0s/0s, dns fd01::2, no dns fd01::1, no b.example"},
		{25 * time.Minute, content(half, "fd01::2", "", "fd00::/64"), false, "" + // it is back
			"router 30m0s, fd00::/64 24h0m0s/4h0m0s, fd01::/64 2h0m0s/0s, dns fd01::2"},
		{time.Minute, content(half, "fd01::2", "", "fd00::/64"), true, "" + // the end
			"router 0s, fd00::/64 24h0m0s/4h0m0s, fd01::/64 1h59m0s/0s, no dns fd01::2"},
		{119*time.Minute - 500*time.Millisecond, content(0, "", "", "fd00::/64"), false, "router 0s, fd00::/64 24h0m0s/4h0m0s"},
	} {
		now = now.Add(step.after)
		if got := said(m.tell(step.content, now, step.last)); got != step.want {
			t.Errorf("%s: it says\n%s, want\n%s", now.Format(time.TimeOnly), got, step.want)
		}
	}
}

// What may be used for less than two hours is not prolonged by taking it back.
func TestTakingBackProlongsNothing(t *testing.T) {
	m, now := newMemory(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	short := content(0, "", "")
	short.Prefixes = []Prefix{{netip.MustParsePrefix("fd00::/64"), 90 * time.Minute, 45 * time.Minute}}
	m.tell(short, now, false)
	got := m.tell(Content{}, now.Add(80*time.Minute), false)
	if want := "router 0s, fd00::/64 10m0s/0s"; said(got) != want {
		t.Errorf("it says %s, want %s", said(got), want)
	}
	if !slices.Equal(got.search, nil) {
		t.Error(got.search)
	}
}

// A provider that gives another prefix each minute has nobody told more than a
// packet holds: fragments of it would be thrown away (RFC 6980 §5), and what does
// not fit the file would not be read again.
func TestPrefixesThatGoAllTheTime(t *testing.T) {
	m, now := newMemory(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const smallest = 1280 - 40 // of what a link carries, without the header
	for i := range 200 {
		now = now.Add(time.Minute)
		c := content(30*time.Minute, fmt.Sprintf("2001:db8:0:%x::1", i), strings.Repeat("long.", 48)+"example", fmt.Sprintf("2001:db8:0:%x::/64", i))
		told := m.tell(c, now, false)
		told.source, told.mtu = make([]byte, 6), 1500
		if n := len(told.encode()); n > smallest {
			t.Fatalf("after %d prefixes: %d bytes", i+1, n)
		}
		if i == 0 {
			continue
		}
		before := netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:%x::/64", i-1))
		if !slices.ContainsFunc(told.prefixes, func(p prefixInformation) bool { return p.Prefix.Prefix == before && p.Preferred == 0 }) {
			t.Fatalf("%s has just gone, and nobody is told: %s", before, said(told))
		}
		if !slices.Contains(told.goneDNS, before.Addr().Next()) {
			t.Fatalf("the server in %s has just gone, and nobody is told: %s", before, said(told))
		}
	}
	if len(m.prefixes) > maxPrefixes || len(m.leaving) >= len(m.prefixes) {
		t.Errorf("%d are kept in mind, and %d as gone", len(m.prefixes), len(m.leaving))
	}
}
