package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// A frontend by its name is asked for at a port that it has.
func TestFrontendsHaveTheirPorts(t *testing.T) {
	facts := everything(t).facts()
	for to, want := range map[string]string{
		"git-ssh:22":          "",
		"git-ssh:22/tcp":      "",
		"everywhere:8080":     "",
		"one-address:8081":    "",
		"named-host:8083":     "",
		"kubernetes-api:6443": "",
		"git-ssh:23":          "frontend git-ssh has no port 23; it has 22/tcp",
		"git-ssh:22/udp":      "frontend git-ssh has no port 22/udp; it has 22/tcp",
	} {
		_, err := Explain(facts, Question{From: "home", To: to})
		if got := fmt.Sprint(err); err != nil && got != want || err == nil && want != "" {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
}

// Who asks from an address of this machine asks for those of its IP family.
func TestThisMachineByAnAddressOfItsOwn(t *testing.T) {
	facts := everything(t).facts()
	for from, at := range map[string]string{"10.11.12.32": "10.11.12.32", "fd00:11:12::32": "fd00:11:12::32", "127.0.0.1": "10.11.12.32, fd00:11:12::32"} {
		answer, err := Explain(facts, Question{From: from, To: "shop/web"})
		if err != nil || answer.Verdict != Reachable || answer.Ways[0].To != "shop/web:80 at "+at {
			t.Errorf("from %s: %v %+v", from, err, answer)
		}
	}
}

// The routes know link-local addresses by any interface.
func TestLinkLocalClientsAreNowhere(t *testing.T) {
	facts := everything(t).facts()
	facts.Back = func(netip.Addr) string { return "eth0" }
	for _, from := range []string{"fe80::5", "169.254.1.1"} {
		if _, err := Explain(facts, Question{From: from, To: "shop/web"}); err == nil || !strings.Contains(err.Error(), "ask from a zone") {
			t.Errorf("%s: %v", from, err)
		}
	}
}

// Who is banned is so at one frontend, for all of an IPv6 /64, and as whom a proxy
// in front names.
func TestWhoIsBannedDoesNotGetThrough(t *testing.T) {
	file := strings.Replace(siteFile, "    port: 22\n", "    port: 22\n    acceptProxyProtocol: [10.11.12.99/32]\n", 1)
	facts := newSite(t, file).facts()
	for _, client := range []string{"10.11.12.101/32", "10.11.12.99/32", "fd00:11:12::/64"} {
		facts.Bans = append(facts.Bans, Ban{
			Door: edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 22}}, Frontend: "git-ssh",
			Client: netip.MustParsePrefix(client), Until: time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC),
		})
	}
	for _, c := range []struct{ from, to, want string }{
		{"10.11.12.101", "10.11.12.32:22", "10.11.12.101 is banned until 2026-11-22 21:00:00: it has opened more than"},
		{"fd00:11:12::5", "git-ssh", "fd00:11:12::5 is banned until"},
		{"10.11.12.102", "git-ssh", ""},
		{"10.11.12.99", "git-ssh", ""},
		{"10.11.12.101", "everywhere", ""},
		{"home", "git-ssh", ""},
	} {
		answer, err := Explain(facts, Question{From: c.from, To: c.to})
		if err != nil || (answer.Verdict == NotReachable) != (c.want != "") || !strings.Contains(answer.Ways[0].Summary, c.want) {
			t.Errorf("%s to %s: %v %+v", c.from, c.to, err, answer)
		}
		checkAnswer(t, answer)
	}
}

// Ten thousand Services with the same port, in two zones, are no reason to wait:
// it takes 20 ms, and took seconds when each was looked up among all.
func BenchmarkExplainAmongManyServices(b *testing.B) {
	facts := newSite(b, siteFile).facts()
	for i := range 10_000 {
		name := fmt.Sprintf("shop/s%d", i)
		for _, zone := range []string{"home", "internet"} {
			facts.State.Exposures = append(facts.State.Exposures, desired.Exposure{
				Name: name + ":443", Service: name, Zone: zone, Protocol: edge.TCP, Port: 443, Open: true,
				Listens: []edge.Listen{{Device: "eth1", Addr: netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}), Port: 443}},
			})
		}
	}
	for b.Loop() {
		if _, err := Explain(facts, Question{To: "10.11.12.32:443"}); err != nil {
			b.Fatal(err)
		}
	}
}
