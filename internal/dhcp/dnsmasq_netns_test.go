package dhcp

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/netnstest"
)

// fields are all that a reply says, by name.
func fields(m *dhcpv4.DHCPv4) map[string]string {
	if m == nil {
		return map[string]string{"answer": "none"}
	}
	all := map[string]string{
		"answer": m.MessageType().String(), "yiaddr": addr4(m.YourIPAddr).String(), "ciaddr": addr4(m.ClientIPAddr).String(),
		"siaddr": addr4(m.ServerIPAddr).String(), "giaddr": addr4(m.GatewayIPAddr).String(), "file": m.BootFileName, "sname": m.ServerHostName,
		"flags": fmt.Sprint(m.Flags), "chaddr": m.ClientHWAddr.String(), "xid": m.TransactionID.String(), "htype": m.HWType.String(), "hops": fmt.Sprint(m.HopCount),
	}
	for code, v := range m.Options {
		all[fmt.Sprintf("option %d", code)] = fmt.Sprintf("%x", v)
	}
	return all
}

// allowed are differences that there may be between what gatehouse and dnsmasq
// say, and why.
var allowed = map[string]string{
	"option 58": "dnsmasq subtracts a random time from T1, so that clients do not renew together",
	"option 59": "and from T2",
	"option 56": "the text of a refusal is for people",
	"siaddr":    "dnsmasq names itself where no next server is; gatehouse leaves it empty in what is about options only",
	"file":      "dnsmasq leaves the field empty if the option was asked for; gatehouse fills in both",
	"option 61": "RFC 6842 has it go back, which dnsmasq does not do",
	"option 67": "dnsmasq has a zero at its end",
	"flags":     "dnsmasq sets the broadcast flag in each refusal; gatehouse where a relay agent has to be told",
	"option 28": "gatehouse tells the broadcast address if it is asked for, dnsmasq in an ACK",
}

// TestNetnsAnswersAreThoseOfDnsmasq sends the same messages to both.
func TestNetnsAnswersAreThoseOfDnsmasq(t *testing.T) {
	need(t, "dnsmasq")
	netnstest.Run(t, func() {
		bridge(t)
		serve(t, func(c *config.Config) {
			noProbe(c)
			d := &c.DHCP[0]
			d.Reservations = []config.Reservation{{MAC: "02:00:00:00:00:0a", Address: addr("10.0.0.11"), Hostname: "nas"}}
			d.Options.Search, d.Options.DNS = nil, []netip.Addr{addr("10.0.0.1")}
		})
		ours := newStation(t, plug(t, 0xf0))
		server, clients := netnstest.New(t), netnstest.New(t)
		netnstest.Cable(t, server, "eth0", clients, "eth0")
		netnstest.Addr(t, server, "eth0", "10.0.0.1/24")
		background(t, server, `exec dnsmasq -C /dev/null -d -p 0 --user=root --pid-file --interface=eth0 --dhcp-leasefile=/run/leases --no-ping --dhcp-authoritative --dhcp-rapid-commit \
			--dhcp-range=10.0.0.100,10.0.0.149,255.255.255.0,12h --domain=home.example --dhcp-host=02:00:00:00:00:0a,10.0.0.11,nas --dhcp-boot=pxelinux.0,,10.0.0.5 \
			--dhcp-option=option:dns-server,10.0.0.1 --dhcp-option=option:ntp-server,10.0.0.2 --dhcp-option=option:mtu,1400 --dhcp-option=option:router,10.0.0.1`)
		theirs := newStation(t, clients)
		p := newPlay(t, site(nil)) // for its messages
		wait := 300 * time.Millisecond
		theirs.answer[addr("10.0.0.201")] = true // nobody else looks yet
		netnstest.Eventually(t, patience, "dnsmasq answers", func() bool {
			theirs.say(p.message("1 INFORM ciaddr=10.0.0.201").DHCPv4, false)
			return theirs.hears(wait) != nil
		})
		for theirs.hears(wait) != nil {
		}
		basic := []byte{1, 3, 6, 15, 26, 28, 42, 51, 58, 59, 67}
		script := []struct {
			line    string
			asks    []byte
			unicast bool
			differs map[string]string // what may differ here alone, and why
		}{
			{line: "1 DISCOVER requested=10.0.0.110", asks: basic},
			{line: "1 REQUEST server=10.0.0.1 requested=10.0.0.110", asks: basic},
			{line: "1 REQUEST ciaddr=10.0.0.110", asks: basic, unicast: true}, // RENEWING
			{line: "1 REQUEST ciaddr=10.0.0.110", asks: basic},                // REBINDING
			{line: "1 REQUEST requested=10.0.0.110", asks: basic},             // INIT-REBOOT
			{line: "1 REQUEST requested=192.168.7.7", asks: basic},            // of another network
			{line: "2 REQUEST requested=10.0.0.110", asks: basic},             // another's
			{line: "2 REQUEST ciaddr=10.0.0.110", asks: basic},                // likewise
			{line: "5 DISCOVER requested=10.0.0.113 rapid", asks: basic},
			{line: "2 REQUEST server=10.0.0.9 requested=10.0.0.110", asks: basic, differs: map[string]string{"": "told to be authoritative, dnsmasq refuses what a machine asks another server for"}},
			{line: "3 DISCOVER requested=10.0.0.111 broadcast id=abc", asks: []byte{1, 3}},         // RFC 6842
			{line: "3 REQUEST server=10.0.0.1 requested=10.0.0.111 broadcast id=abc", asks: basic}, //
			{line: "4 DISCOVER requested=10.0.0.112 lease=1h", asks: basic},
			{line: "4 REQUEST server=10.0.0.1 requested=10.0.0.112 lease=1h", asks: basic},
			{line: "a DISCOVER", asks: []byte{1, 12}},
			{line: "a REQUEST server=10.0.0.1 requested=10.0.0.11 host=x", asks: []byte{1, 12}},
			{line: "5 INFORM ciaddr=10.0.0.200", asks: basic, differs: map[string]string{"option 51": "dnsmasq tells a lease time though there is no lease, which RFC 2131 section 4.3.5 forbids"}},
			{line: "1 RELEASE ciaddr=10.0.0.110 server=10.0.0.1", unicast: true},
			{line: "1 REQUEST requested=10.0.0.110", asks: basic}, // it has left, and comes back
			{line: "4 DECLINE requested=10.0.0.112 server=10.0.0.1"},
			{line: "6 REQUEST ciaddr=10.0.0.114", asks: basic}, // of before the server was there
			{line: "3 DISCOVER relay=10.9.0.1"},                // of a network that is not known
		}
		used := map[string]bool{}
		for _, step := range script {
			var said [2]map[string]string
			for i, st := range []*station{ours, theirs} {
				m := p.message(step.line).DHCPv4
				if step.asks != nil {
					m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, step.asks))
				}
				m.ClientHWAddr = append(net.HardwareAddr{}, m.ClientHWAddr...)
				if a := addr4(m.ClientIPAddr); a.IsValid() {
					st.mu.Lock()
					st.answer[a] = true
					st.mu.Unlock()
				}
				st.say(m, step.unicast)
				said[i] = fields(st.hears(wait))
			}
			names := slices.Sorted(maps.Keys(said[0]))
			for name := range said[1] {
				if !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
			for _, name := range names {
				if said[0][name] == said[1][name] {
					continue
				}
				if _, ok := allowed[name]; ok {
					used[name] = true
					continue
				}
				if step.differs[name] != "" || step.differs[""] != "" {
					continue
				}
				t.Errorf("%s: %s: gatehouse %q, dnsmasq %q", step.line, name, said[0][name], said[1][name])
			}
			t.Logf("%s: %s %s", step.line, said[0]["answer"], said[0]["yiaddr"])
		}
		for name, why := range allowed {
			if !used[name] {
				t.Errorf("%s may differ, and does not: %s", name, why)
			}
		}
	})
}
