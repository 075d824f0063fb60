package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"math"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

// textOf is what somebody reads of a page who sees no pictures.
func textOf(body string) string {
	_, body, _ = strings.Cut(body, "</style>")
	body, _, _ = strings.Cut(body, "<script>")
	body = regexp.MustCompile(`(?s)<svg.*?</svg>`).ReplaceAllString(body, " ")
	return html.UnescapeString(strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")), " "))
}

func TestPageEscapesWhatOthersWrote(t *testing.T) {
	s := sample()
	evil := `<u>"'&</script><script>alert(1)</script>`
	server := New(Source{
		Status: func() status.Status { return s },
		Explain: func(q explain.Question) (explain.Answer, error) {
			return explain.Answer{Question: q, Ways: []explain.Way{{Summary: evil, Steps: []explain.Step{{What: evil}}}}}, nil
		},
	}, slog.New(slog.DiscardHandler)).Handler()
	s.Problems = append(s.Problems, edge.Problem{Object: "service/" + evil, Path: evil, What: evil, Remedy: evil})
	s.Exposures[0].Notes, s.Exposures[0].Reason, s.Exposures[0].Service = []string{evil}, evil, evil
	f := &s.Frontends[0]
	f.Zone, f.Client, f.Hostnames, f.Health = evil, evil, []string{evil}, evil
	f.Backends[0].Node, f.Backends[0].Pods, f.Backends[0].Error = evil, []string{evil, evil}, evil
	s.Addresses[0].Services, s.Routes[0].Why, s.Version = []string{evil}, evil, evil
	for _, path := range []string{"/", "/?q=" + url.QueryEscape(evil), "/explain?to=" + url.QueryEscape(evil)} {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		body := w.Body.String()
		if w.Code != 200 || !strings.Contains(body, "&lt;u&gt;") {
			t.Errorf("GET %s: got %d:\n%s", path, w.Code, body)
		}
		for _, raw := range []string{"<u>", "<script>alert", "alert(1)</script>", `"'&`} {
			if _, after, found := strings.Cut(body, raw); found {
				t.Errorf("GET %s: %s goes on with %.100s", path, raw, after)
			}
		}
	}
	_, body := ask(t, sample(), "GET", "/")
	for _, want := range []string{"shop/&lt;b&gt;:81", "SCTP is not supported yet", "@eth1:80", "1.5 kB", "3.0 MB", "25.0 %", "connection refused"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func TestPageShowsWhatHoldsAndWhatEnds(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/")
	text := textOf(body)
	for _, want := range []string{
		"ready up 1m version v1 configuration read .* ago cluster 2 services, 3 nodes, from the API conntrack 240000 of 262144 1 problem service/shop/b SCTP is not supported yet",
		"TCP @eth1:80", "UDP @eth1:80", "idle timeout 1h30m drain timeout 5m health checked by tcp every 5s", "idle timeout 30s",
		"connections 7, 1 waiting, 24 drain timeout, 23 idle timeout, 25 lost, 22 reset bytes 1.5 kB in, 3.0 MB out per client 2001 connections",
		"4 no backend 11 not accepted", "32 client limit 35 dropped", "connections 2 of 20000 per second not yet in not yet out not yet",
		"packets 33 in, 34 out, 35 dropped", "● up , not checked wanted 100.0 % , got: not yet", "w1 ● up wanted 25.0 % , got: not yet 2 took 3 6 failed",
		"10.0.0.102:30080 ✕ down wanted 0.0 % , got: not yet .*connection refused",
		"10.0.0.103:30080 draining: 8 left, cut in (4m0|3m5.)s", "10.0.0.104:30080 draining: 7 left, until they end",
		"closed; its last connections live on, cut in 59m5.s",
		"not seen : this machine's address: the connection is relayed",
		`client to show the client’s address: annotation gatehouse.e13.dev/send-proxy-protocol: v2 \(if the application understands it\), or annotation gatehouse.e13.dev/transparent: "true"`,
		"shop/git:443 zone internet git.example.org \\*.git.example.org TCP @veth0:443 only from 203.0.113.0/24 behind the proxy 203.0.113.9/32 client’s address seen : the client's, in a PROXY protocol v2 header connections 52",
		"55 backend down", "57 banned 56 rate limit",
		"5 clients banned 203.0.113.7 2m(5|4)s more 2001:db8:1:2::/64 (1h|59m59s) more and 3 more",
		"rate 100/10s new per client, else banned for 1h balance backend chosen by client address, kept for 3h health checked by http /healthz every 5s, wants 200-399 " +
			"all down clients are turned away when all are down one down connections are closed when their backend is down",
		"backend chosen by fewest connections old zone|backend chosen by fewest connections old TCP",
		"shop/api:443 zone home moved by the kernel \\(nat\\) TCP @eth1:443 client’s address seen : the client's own connections 82 .*" +
			"10.244.1.7:8443 w1 ● up wanted 100.0 % , got: not yet 88 took 87 8.9 kB in 9.0 kB out 10.244.2.7:8443 w2 draining: 93 left, until they end",
		"connections 81 bytes 8.3 kB in, 8.4 kB out packets 85 in, 86 out balance backend chosen by client address",
		"Not open 1 What is not open, and what would be right what zone reason what would be right from shop/<b>:81 home SCTP is not supported yet – service/shop/b",
		"Addresses of pools home-v4 in zone home: 2 given, 1 held, 11 free, 2 unusable home-v6 in zone home: 0 given, very many free Addresses that Services have address interface pool zone services state " +
			"10.11.12.70 eth1 home-v4 home shop/web shop/api ready 10.11.12.71 eth1 home-v4 home shop/mail conflict: 52:54:00:00:00:07 answers for it " +
			"10.11.12.72 – home-v4 home shop/old held, free in (40|39)s",
		"Routes to pods 10.244.1.0/24 via 10.0.0.101 node/w1",
		"TCP @veth0:443 in internet, shared by server name 3 waiting for a name 112 of 123 given to a frontend 71 not tls 72 unknown name 73 not accepted " +
			"from before it was shared: 2 left with 10.0.0.103:443 , until they end UDP 10.0.0.1:444",
		"UDP 10.0.0.1:444 , shared by server name closed 1 waiting for a name 0 of 0 given to a frontend 74 packets dropped",
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, none := range []string{"finished", "0 cut", "0 waiting", "chosen by random", "0 clients banned", "and 0 more"} {
		if strings.Contains(text, none) {
			t.Errorf("the page says %q", none)
		}
	}
	if n := strings.Count(text, "moved by the kernel"); n != 1 {
		t.Errorf("%d frontends are said to be moved by the kernel, want 1", n)
	}
	if n := strings.Count(text, "shared by server name"); n != 2 {
		t.Errorf("the page has %d listeners, want 2", n)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// What rates and shares there are is shown, and whether chance explains how far
// they are off.
func TestPageShowsRatesAndShares(t *testing.T) {
	at := func(got ...uint64) status.Status {
		s := sample()
		f := &s.Frontends[0]
		f.Rates = &status.Rates{Connections: 12.34, Received: 1234, Sent: 5_600_000}
		total := got[0] + got[1]
		f.Backends = nil
		for i, n := range got {
			f.Backends = append(f.Backends, status.Backend{
				Addr: fmt.Sprintf("10.0.0.%d:30080", 101+i), State: edge.Up, Share: float64(i+1) / 3, Total: n,
				Got: &status.Got{Over: status.Duration(5 * time.Minute), Connections: n, Share: float64(n) / float64(total), Wanted: float64(i+1) / 3},
			})
		}
		f.Backends[1].Pods = []string{"shop/web-a", "other/web-b"}
		return s
	}
	for want, s := range map[string]status.Status{
		"connections 2 of 20000 per second 12.3 in 1.2 kB/s out 5.6 MB/s": at(100, 200),
		"33.3 % of 33.3 %": at(100, 200),
		"web-a other/web-b ● up 66.7 % of 66.7 % each pod 33.3 % of 33.3 %": at(100, 200),
		"Last 5m: as even as chance allows":                                 at(110, 190),
		"Last 5m: further off than chance explains":                         at(200, 100),
		"Last 5m: too few connections to say":                               at(9, 1),
		"no backends":                                                       func() status.Status { s := sample(); s.Frontends[0].Backends = nil; return s }(),
		"waiting for the cluster, names": func() status.Status {
			s := sample()
			s.Ready, s.NotReady = false, []string{"the cluster", "names"}
			return s
		}(),
		"on disk is bad; the one of .* ago goes on": func() status.Status { s := sample(); s.Config.Current = false; return s }(),
		"new.yaml is on trial for 0s more, by uid 0; unless it is confirmed the files go on then": func() status.Status {
			s := sample()
			s.Config.Trial = &status.Trial{Files: []string{"new.yaml"}, By: "uid 0"}
			return s
		}(),
		"✓ no problems": func() status.Status { s := sample(); s.Problems = nil; return s }(),
		"gatehouse.yaml:3:5 frontends.0. it is bad What would be right: something": func() status.Status {
			s := sample()
			s.Problems[0] = edge.Problem{Pos: edge.Pos{File: "gatehouse.yaml", Line: 3, Col: 5}, Path: "frontends[0]", What: "it is bad", Remedy: "something"}
			return s
		}(),
	} {
		_, body := ask(t, s, "GET", "/")
		if text := textOf(body); !regexp.MustCompile(want).MatchString(strings.ReplaceAll(text, "gatehouse.yaml:3 ", "gatehouse.yaml:3:5 ")) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}
}

// A browser may run and paint what is in the page, and load nothing else.
func TestPageIsOneFile(t *testing.T) {
	server := New(Source{Status: sample}, slog.New(slog.DiscardHandler)).Handler()
	for _, path := range []string{"/", "/explain"} {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		body, policy := w.Body.String(), w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %s", path, policy)
		}
		for _, part := range regexp.MustCompile(`(?s)<(?:style|script)>(.*?)</`).FindAllStringSubmatch(body, -1) {
			sum := sha256.Sum256([]byte(part[1]))
			if hash := base64.StdEncoding.EncodeToString(sum[:]); !strings.Contains(policy, "'sha256-"+hash+"'") {
				t.Errorf("%s: a browser refuses what begins with %.40q", path, part[1])
			}
		}
		if found := regexp.MustCompile(`(?i)\s(style|on\w+|src|srcset)\s*=|@import|url\(|https?://[^w]`).FindString(body); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		ids := map[string]bool{}
		for _, id := range regexp.MustCompile(`\sid="([^"]*)"`).FindAllStringSubmatch(body, -1) {
			if ids[id[1]] {
				t.Errorf("%s has two of id %s", path, id[1])
			}
			ids[id[1]] = true
		}
		for _, ref := range regexp.MustCompile(`aria-labelledby="([^"]*)"`).FindAllStringSubmatch(body, -1) {
			if !ids[ref[1]] {
				t.Errorf("%s: nothing has the id %s", path, ref[1])
			}
		}
	}
}

// large is a site of many exposures, zones, nodes and pods.
func large(exposures, zones, nodes, pods int) status.Status {
	s := sample()
	s.Exposures, s.Frontends, s.Pools = nil, nil, nil
	for i := range exposures {
		zone := fmt.Sprintf("zone-%d", i%zones)
		e := desired.Exposure{Name: fmt.Sprintf("team-%d/service-%d:443", i%37, i), Service: fmt.Sprintf("team-%d/service-%d", i%37, i), Zone: zone, Protocol: edge.TCP, Port: 443, Open: i%5 > 0}
		if !e.Open {
			e.Reason = "namespace team-0 may not be in the zone"
		}
		s.Exposures = append(s.Exposures, e)
		if !e.Open {
			continue
		}
		f := status.Frontend{Name: e.Name, Zone: zone, Protocol: edge.TCP, Listen: "@eth1:443", Balance: edge.BalanceRandom, Rates: &status.Rates{Received: math.Pow(10, float64(i%10))}}
		for j := range pods {
			f.Backends = append(f.Backends, status.Backend{
				Addr: fmt.Sprintf("10.1.%d.%d:8443", j/250, j%250), Node: fmt.Sprintf("worker-%d", j%nodes), State: edge.Up, Share: 1 / float64(pods),
				Pods: []string{fmt.Sprintf("team-%d/service-%d-6d4cf56db6-%05d", i%37, i, j)},
				Got:  &status.Got{Share: 1 / float64(pods), Wanted: 1 / float64(pods), Connections: 3},
			})
		}
		s.Frontends = append(s.Frontends, f)
		s.Problems = append(s.Problems, edge.Problem{Object: "service/" + e.Service, What: "it has a problem that takes about as many words as this one"})
	}
	return s
}

func TestPageIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		status       status.Status
		raw, zipped  int
		cards, more  int
		exists, none string
	}{
		"usual":          {sample(), 70_000, 14_000, 7, 0, "shop/api:443", "shown; "},
		"1000 exposures": {large(1000, 6, 3, 3), 250_000, 30_000, cardsShown, 0, "800, 40 shown; show more", "team-36/service-998:443 zone"},
		"300 pods":       {large(10, 1, 30, 300), 180_000, 20_000, 8, 0, "and 290 more that are up", "-00011"},
	} {
		code, body := ask(t, c.status, "GET", "/")
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write([]byte(body)); err != nil || w.Close() != nil || code != 200 {
			t.Fatal(code, err)
		}
		t.Logf("%s: %d bytes, %d with gzip", name, len(body), zipped.Len())
		if len(body) > c.raw || zipped.Len() > c.zipped {
			t.Errorf("%s: the page has %d bytes, %d with gzip; want %d and %d at most", name, len(body), zipped.Len(), c.raw, c.zipped)
		}
		if n := strings.Count(body, "<article"); n != c.cards {
			t.Errorf("%s: %d cards, want %d", name, n, c.cards)
		}
		if text := textOf(body); !strings.Contains(text, c.exists) || strings.Contains(text, c.none) {
			t.Errorf("%s: %q has to be there, and %q not:\n%s", name, c.exists, c.none, text)
		}
	}
}

// Whatever there are too many of is found with the filter, and what is wrong is
// shown without.
func TestFilter(t *testing.T) {
	s := large(1000, 6, 3, 3)
	last := &s.Frontends[len(s.Frontends)-1]
	last.Backends[0].State = edge.Down
	for query, want := range map[string]string{
		"":                      last.Name,
		"?all=1":                "800, 200 shown",
		"?q=service-777":        "1 of 800 match .* team-0/service-777:443 zone zone-3",
		"?q=SERVICE-777+zone-3": "1 of 800 match",
		"?q=service-777+zone-4": "0 of 800 match",
		"?q=down":               "1 of 800 match .* " + last.Name,
		"?q=service-995":        "Not open 200 .* team-33/service-995:443",
		"?q=10.11.12.72":        "10.11.12.72",
	} {
		_, body := ask(t, s, "GET", "/"+query)
		if text := textOf(body); !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s: no %q in\n%s", query, want, text)
		}
	}
	if w := wishOf(url.Values{"q": {strings.Repeat("ab ", 100)}}); len(w.words) > 100 || w != wishOf(url.Values{"q": {" " + strings.Repeat("AB  ", 100)}}) {
		t.Errorf("wish %+v", w)
	}
}

// Every fact leads to why it is so.
func TestFactsLeadToExplain(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/")
	for _, link := range []string{
		"explain?from=home&amp;to=shop%2Fweb%3A80", "explain?from=internet&amp;to=git.example.org", "explain?from=home&amp;to=shop%2F%3Cb%3E%3A81",
		"explain?to=shop%2Fb", "explain?from=home&amp;to=shop%2Fmail", "explain?from=internet&amp;to=rest", "explain?to=old",
	} {
		if !strings.Contains(body, `href="`+link+`"`) {
			t.Errorf("no link to %s", link)
		}
	}
}

func TestExplainPage(t *testing.T) {
	server := New(Source{Status: sample, Explain: func(q explain.Question) (explain.Answer, error) {
		if q.To == "nonsense" {
			return explain.Answer{}, errors.New(`"nonsense" is <nothing>; ask for shop/web`)
		}
		return explain.Answer{Question: q, Verdict: explain.Some, Ways: []explain.Way{{
			From: "zone home", To: "shop/web:80", Verdict: explain.NotReachable, Summary: "<it> is closed", Remedy: "open it", Door: "TCP @eth1:80",
			Steps:   []explain.Step{{Check: "class", OK: true, What: "it is ours", Source: "service/shop/web"}, {Check: "zone", What: "not asked for", Source: "gatehouse.yaml:14"}},
			Backend: []explain.Receiver{{Backend: edge.Backend{Addr: netip.MustParseAddrPort("10.0.0.101:30080"), State: edge.Down, Error: "refused", Share: .25}, Shares: []desired.PodShare{{Pod: "shop/web-1", Share: .125}}}},
		}}}, nil
	}}, slog.New(slog.DiscardHandler)).Handler()
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/explain":             {200, "Ask above"},
		"/explain?to=nonsense": {400, `That is no question "nonsense" is <nothing>; ask for shop/web`},
		"/explain?to=+shop/web+&from=home": {200, "shop/web, from home: reachable by some zone home → shop/web:80 not reachable <it> is closed What would let it through: open it TCP @eth1:80 " +
			"✓ yes: class it is ours service/shop/web ✕ no: zone not asked for gatehouse.yaml:14 Where a connection may go backend node state share pods 10.0.0.101:30080 – down: refused 25.0 % shop/web-1 12.5 %"},
	} {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if text := textOf(w.Body.String()); w.Code != want.code || !strings.Contains(text, want.text) {
			t.Errorf("%s: got %d, no %q in\n%s", path, w.Code, want.text, text)
		}
	}
}

// What clients of the DHCP server call themselves is on the page, and is theirs.
func TestPageShowsWhatTheRouterDoes(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/")
	text := textOf(body)
	for _, want := range []string{
		"veth0 macvlan, 10.11.12.51/24, by DHCP from 10.11.12.1, for 1h",
		"firewall 2 policies, 7 pinholes, 407 packets dropped",
		"internet -> cluster: 204 packets",
		"DHCP in cluster 2 leases, 98 of 100 addresses free, 1 taken by somebody who was not given it",
		"DHCP in lab interface eth2 has no IPv4 address",
		"IPv6 in cluster, eth0 fd00:10::/64; 9 advertisements, 2 answers by DHCPv6",
		"DNS in home 12 names, 208 questions: 20 about them, 180 from the cache, 8 asked further, 3 too many, 2 answers held back",
		"DNS asks 10.11.12.1:53: 4 questions, 4 without an answer, down: no answer within 2s",
		"10.0.0.11 worker-1 cluster 02:00:00:00:00:11 11h",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(body, "<i>tv") {
		t.Error("what a client calls itself is markup")
	}
	s := sample()
	s.Router = status.Router{}
	if _, body = ask(t, s, "GET", "/"); !strings.Contains(body, `aria-labelledby="router-h" hidden`) {
		t.Error("a machine that routes nothing has that section")
	}
}
