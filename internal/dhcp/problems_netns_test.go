package dhcp

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// fickle is a Journal that keeps leases, or does not.
type fickle struct {
	mu  sync.Mutex
	err error
}

func (f *fickle) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fickle) Commit(_ []edge.Lease, done func(error)) {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	done(err)
}

// TestNetnsOperatorsAreToldWhatIsWrong has each problem of a server come, and go.
func TestNetnsOperatorsAreToldWhatIsWrong(t *testing.T) {
	netnstest.Run(t, func() {
		bridge(t)
		first := serve(t, func(c *config.Config) {
			d := &c.DHCP[0]
			d.Pools, d.Probe = []edge.Range{span("10.0.0.100")}, false
			d.Reservations = []config.Reservation{{MAC: "02:00:00:00:00:0a", Address: addr("10.0.0.11")}}
		})
		first.stop() // only for what it plans from
		journal := new(fickle)
		s := NewServer(slog.New(slog.DiscardHandler), nil, journal, func() {})
		zones, _ := Plan(first.in)
		defer s.Close()
		problems := func() string {
			var all []string
			for _, p := range s.Apply(zones) {
				all = append(all, p.Path+": "+p.What)
			}
			return strings.Join(all, "\n")
		}
		if got := problems(); got != "" {
			t.Fatal(got)
		}
		at, p := newStation(t, plug(t, 0xf0)), newPlay(t, site(nil))
		say := func(line string) {
			t.Helper()
			at.say(p.message(line).DHCPv4, false)
		}
		told := func(want string) {
			t.Helper()
			eventually(t, want, func() bool { return problems() == want })
		}
		answered := func(want dhcpv4.MessageType) {
			t.Helper()
			if m := at.hears(patience); m == nil || m.MessageType() != want {
				t.Fatalf("the answer is %v, want %s", m, want)
			}
		}

		journal.fail(errors.New("no space left on device"))
		say("1 REQUEST server=10.0.0.1 requested=10.0.0.100")
		told("stateDir: leases cannot be written, so that nobody gets one: no space left on device")
		if m := at.hears(100 * time.Millisecond); m != nil {
			t.Errorf("the answer is %s, and nothing is kept", m.MessageType())
		}
		journal.fail(nil)
		say("1 REQUEST server=10.0.0.1 requested=10.0.0.100")
		answered(dhcpv4.MessageTypeAck)
		told("")

		say("2 DISCOVER")
		told("dhcp.cluster: no address is left for a machine that asks")
		say("1 RELEASE ciaddr=10.0.0.100")
		told("")

		say("a REQUEST server=10.0.0.1 requested=10.0.0.11")
		answered(dhcpv4.MessageTypeAck)
		say("a DECLINE server=10.0.0.1 requested=10.0.0.11")
		told("dhcp.cluster: 10.0.0.11 is reserved, and somebody has it who was not given it")

		say("3 REQUEST server=10.0.0.9 requested=10.0.0.50")
		told("dhcp.cluster: another DHCP server answers there, 10.0.0.9\ndhcp.cluster: 10.0.0.11 is reserved, and somebody has it who was not given it")

		at.frame(at.mac, 0x0800, []byte{0x45}) // what is no message at all
		at.say(&dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, ClientHWAddr: machine(1), Options: dhcpv4.Options{}}, false)
		for range 2 * clientMessages {
			say("7 INFORM ciaddr=10.0.0.77")
		}
		eventually(t, "they are counted", func() bool {
			got := s.Status(time.Now())[0].Messages
			return got[Malformed] == 1 && got[Limited] >= clientMessages-1 && got[Unkept] == 1 && got["INFORM"] >= clientMessages
		})
	})
}
