package cli

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
)

// answered is what explain says in the documents.
func answered(now time.Time) explain.Answer {
	receiver := func(addr, node string, weight int, share float64, pods ...string) explain.Receiver {
		r := explain.Receiver{Backend: edge.Backend{
			Addr: netip.MustParseAddrPort(addr), Node: node, Weight: weight, Share: share, State: edge.Up, Since: now.Add(-53 * time.Hour),
		}}
		for _, pod := range pods {
			r.Shares = append(r.Shares, desired.PodShare{Pod: pod, Node: node, Share: share / float64(len(pods))})
		}
		return r
	}
	const service = "service/shop/web"
	return explain.Answer{At: now, Verdict: explain.Some, Ways: []explain.Way{
		{
			From: "zone home", To: "shop/web:80 at 10.11.12.32", Verdict: explain.Reachable, Summary: "shop/web:80 takes it, for 2 backends",
			Steps: []explain.Step{
				{Check: "zone", OK: true, What: "zone home is eth1", Source: "gatehouse.yaml:3"},
				{Check: "address", OK: true, What: "10.11.12.32 is an address of eth1", Source: "interface/eth1"},
				{Check: "class", OK: true, What: "its loadBalancerClass gatehouse.e13.dev/edge is gatehouse's", Source: service},
				{Check: "zone", OK: true, What: "it asks for zone home (annotation gatehouse.e13.dev/zones)", Source: service},
				{Check: "allow", OK: true, What: "everybody may open zone home", Source: "gatehouse.yaml:9"},
				{Check: "port", OK: true, What: "service shop/web has TCP port 80 in zone home", Source: service},
				{Check: "listener", OK: true, What: "TCP @eth1:80 is open on this machine", Source: service},
				{Check: "source range", OK: true, What: "everybody may connect", Source: service},
				{Check: "data plane", OK: true, What: "proxy: gatehouse takes the connection, and makes one to a backend", Source: "gatehouse.yaml:7"},
				{Check: "backend", OK: true, What: "it goes to one of 2 node ports", Source: service},
				{Check: "health", OK: true, What: "all of them are up", Source: service},
			},
			Backend: []explain.Receiver{receiver("10.0.0.101:30080", "w1", 1, 1.0/3, "shop/web-0"), receiver("10.0.0.102:30080", "w2", 2, 2.0/3, "shop/web-1", "shop/web-2")},
		},
		{
			From: "zone internet", To: "shop/web:80", Verdict: explain.NotReachable, Summary: "it asks for zone home, and not for internet",
			Remedy: "if it is to be open there: kubectl annotate --overwrite service -n shop web gatehouse.e13.dev/zones=home,internet",
			Steps: []explain.Step{
				{Check: "zone", OK: true, What: "zone internet is veth0", Source: "gatehouse.yaml:4"},
				{Check: "class", OK: true, What: "its loadBalancerClass gatehouse.e13.dev/edge is gatehouse's", Source: service},
				{Check: "zone", What: "it asks for zone home, and not for internet", Source: service},
			},
		},
	}}
}

// The example of the documents is what the command prints.
func TestExplainIsAsTheDocsShow(t *testing.T) {
	var out strings.Builder
	if err := printAnswer(&out, answered(time.Now()), false); err != nil {
		t.Fatal(err)
	}
	const file = "gen/text/explain.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "$ gatehouse explain shop/web\n"+out.String()+"```") {
		t.Errorf("%s does not show what is printed:\n%s", file, out.String())
	}
}

// Colours are only that, and take no room.
func TestExplainInColourIsTheSame(t *testing.T) {
	var coloured, without strings.Builder
	now := time.Now()
	if err := printAnswer(&coloured, answered(now), true); err != nil {
		t.Fatal(err)
	}
	if err := printAnswer(&without, answered(now), false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x1b[32mreachable\x1b[0m", "\x1b[31mnot reachable\x1b[0m", "\x1b[32mok\x1b[0m", "\x1b[31mno\x1b[0m"} {
		if !strings.Contains(coloured.String(), want) {
			t.Errorf("there is no %q", want)
		}
	}
	if got := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured.String(), ""); got != without.String() {
		t.Errorf("without its colours it is\n%swant\n%s", got, without.String())
	}
}
