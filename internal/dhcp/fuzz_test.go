package dhcp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
)

// FuzzAnswer sends any messages in any order. Nothing panics, and nobody is told
// that it has an address that is not of its network, or that somebody else has.
func FuzzAnswer(f *testing.F) {
	seed := newPlay(f, site(nil))
	add := func(lines ...string) {
		var all []byte
		for _, line := range lines {
			b := seed.message(line).ToBytes()
			all = append(all, 0, byte(len(b)>>8), byte(len(b)))
			all = append(all, b...)
		}
		f.Add(all)
	}
	add("1 DISCOVER", "1 REQUEST server=10.0.0.1 requested=10.0.0.103", "2 DISCOVER", "2 REQUEST requested=10.0.0.103", "1 REQUEST ciaddr=10.0.0.103", "1 RELEASE ciaddr=10.0.0.103")
	add("a DISCOVER rapid", "a DISCOVER id=x rapid", "1 DECLINE requested=10.0.0.103 server=10.0.0.1", "1 INFORM ciaddr=10.0.0.7")
	add("1 DISCOVER relay=10.2.0.1 link=10.2.0.1", "1 REQUEST relay=10.2.0.1 override=10.2.0.1 server=10.2.0.1 requested=10.2.0.59", "2 DISCOVER host=worker-1")
	f.Fuzz(func(t *testing.T, data []byte) {
		zone := site(func(c *config.Config) { everything(c); c.DHCP[0].Probe = len(data)%2 == 0 })
		book, now := NewBook(nil), begin
		type holder struct {
			client string
			until  time.Time
		}
		has := map[netip.Addr]holder{}
		for len(data) > 3 {
			pause, n := data[0], int(data[1])<<8|int(data[2])
			data = data[3:]
			n = min(n, len(data))
			m, err := dhcpv4.FromBytes(data[:n])
			data = data[n:]
			now = now.Add(time.Duration(pause) * time.Minute)
			if err != nil {
				continue
			}
			in := Packet{Device: "eth0", DHCPv4: m, Src: addr4(m.ClientIPAddr)}
			for range 10 {
				r := book.Answer(&zone, in, now)
				for _, l := range r.Changes {
					h := holder{clientOf(&l), l.Expires}
					if old := has[l.Addr]; old.until.After(now) && old.client != h.client && h.client != "" && !l.Reserved {
						t.Fatalf("%s is %s's until %s, and given to %s", l.Addr, old.client, old.until, h.client)
					}
					has[l.Addr] = h
				}
				if r.Probe.IsValid() {
					somebody := ""
					if pause%3 == 1 {
						somebody = "02:00:00:00:00:ee"
					}
					for _, l := range book.Probed(&zone, r.Probe, somebody, now) {
						has[l.Addr] = holder{"", l.Expires}
					}
					continue
				}
				if r.Reply == nil {
					break
				}
				check(t, &zone, book, in, r, now)
				break
			}
			for client, addrs := range book.addrs {
				if client == "" || len(addrs) == 0 {
					t.Fatalf("%q has %v", client, addrs)
				}
			}
			if len(book.leases)+len(book.offers) > 2*(4+10+2) {
				t.Fatalf("%d leases and %d offers", len(book.leases), len(book.offers))
			}
		}
	})
}

func check(t *testing.T, zone *Zone, book *Book, in Packet, r Result, now time.Time) {
	t.Helper()
	b := r.Reply.ToBytes()
	if len(b) > 1472 && len(in.ToBytes()) < 1000 {
		t.Fatalf("%d bytes", len(b))
	}
	back, err := dhcpv4.FromBytes(b)
	if err != nil || back.TransactionID != in.TransactionID {
		t.Fatalf("the reply is unreadable: %v", err)
	}
	a := addr4(back.YourIPAddr)
	if !a.IsValid() {
		return
	}
	given := zone.pooled(a)
	if _, ok := zone.reserved[a]; !given && !ok {
		t.Fatalf("%s is not to be given", a)
	}
	req, _ := understand(zone, in, now)
	if req.networkOf(a) == nil {
		t.Fatalf("%s is not of the network of the client", a)
	}
	if back.MessageType() == dhcpv4.MessageTypeAck {
		if l := book.leases[a]; clientOf(&l) != req.client || !l.Expires.After(now) || len(r.Changes) == 0 || r.Changes[0] != l {
			t.Fatalf("told of %s, and the lease is %v, kept %v", a, l, r.Changes)
		}
	}
}
