package explain

import (
	"net/netip"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

func TestTargetsAreRead(t *testing.T) {
	for text, want := range map[string]target{
		"10.11.12.32:80":               {addr: netip.MustParseAddr("10.11.12.32"), port: 80},
		" 10.11.12.32:80/udp ":         {addr: netip.MustParseAddr("10.11.12.32"), port: 80, protocol: edge.UDP},
		"[fd00::1]:443/TCP":            {addr: netip.MustParseAddr("fd00::1"), port: 443, protocol: edge.TCP},
		"[::ffff:10.0.0.1]:1":          {addr: netip.MustParseAddr("10.0.0.1"), port: 1},
		"Git.Example.org.:443":         {host: "git.example.org", port: 443},
		"nas:445":                      {host: "nas", port: 445},
		"shop/web":                     {service: "shop/web"},
		"shop/web:80":                  {service: "shop/web", port: 80},
		"shop/web:http":                {service: "shop/web", portName: "http"},
		"shop/dns:53/udp":              {service: "shop/dns", port: 53, protocol: edge.UDP},
		"shop/udp":                     {service: "shop/udp"}, // which is no protocol there
		"git-ssh":                      {name: "git-ssh"},
		"git.example.org":              {name: "git.example.org"},
		"*.example.org":                {name: "*.example.org"},
		":8080":                        {name: ":8080"},
		"@eth1:53/UDP":                 {name: "@eth1:53/UDP"},
		"shop/mail:9999/sctp":          {service: "shop/mail", port: 9999, protocol: edge.SCTP},
		"kubernetes-api":               {name: "kubernetes-api"},
		"a.very.long.name.local:65535": {host: "a.very.long.name.local", port: 65535},
	} {
		got, err := parseTarget(text)
		if err != nil || got != want {
			t.Errorf("%q: got %+v (%v), want %+v", text, got, err, want)
		}
	}
}

func TestWhatIsNoTargetIsSaid(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "nothing is asked for",
		"10.11.12.32":            "has no port",
		"fd00::1":                "has no port",
		"[fd00::1]":              "has no port",
		"fd00::1:x":              "is no port",
		"10.0.0.1:0":             `"0" is no port`,
		"10.0.0.1:65536":         "is no port",
		"10.0.0.1:+80":           "is no port",
		"10.0.0.1:http":          "is no port",
		"10.0.0.1:80/quic":       `"quic" is no protocol`,
		"10.0.0.256:80":          "neither an address nor a name",
		"1:2:3:80":               "written as [fd00::1]:80",
		"[10.0.0.1]:80":          "written as [fd00::1]:80",
		"[fd00::1%eth0]:80":      "neither an address nor a name",
		"https://example.org":    "is a URL",
		"shop/web/80":            "not the namespace and the name",
		"Shop/web":               "not the namespace and the name",
		"shop/":                  "not the namespace and the name",
		"shop/web:":              `"" is no port`,
		"shop/web:99999":         `"99999" is no port`,
		"a b":                    "characters that are in no name",
		"é.example.org:80":       "characters that are in no name",
		"-bad-:80":               "neither an address nor a name",
		"..":                     "is no name",
		strings.Repeat("a", 700): "has 700 bytes",
	} {
		if _, err := parseTarget(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), howTo) {
			t.Errorf("%q: %v, want %q and what could be asked", text, err, want)
		}
	}
}

// What is taken is printed so that it is taken again, for the same.
func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"10.0.0.1:80", "[fd00::1]:80/udp", "shop/web:http", "a/b:53/sctp", "git.example.org:443", ":80", "*.example.org", "a/udp", "a:1/b", "x.:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTarget(text)
		if err != nil {
			return
		}
		again, err := parseTarget(got.String())
		if err != nil || again != got {
			t.Errorf("%q is %+v, printed %q and read again %+v: %v", text, got, got.String(), again, err)
		}
		if n := boolCount(got.addr.IsValid(), got.host != "", got.service != "", got.name != ""); n != 1 {
			t.Errorf("%q is %d things: %+v", text, n, got)
		}
	})
}

// Whatever is asked, it is answered, or said what is wrong with it.
func FuzzQuestion(f *testing.F) {
	facts := everything(f).facts()
	for _, seed := range []Question{{"home", "10.11.12.32:80"}, {"", "shop/web"}, {"10.11.12.101", "git.example.org"}, {"::1", "[::1]:80"}, {"127.0.0.1", "looped"}} {
		f.Add(seed.From, seed.To)
	}
	f.Fuzz(func(t *testing.T, from, to string) {
		answer, err := Explain(facts, Question{from, to})
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		checkAnswer(t, answer)
	})
}

func boolCount(all ...bool) (n int) {
	for _, is := range all {
		if is {
			n++
		}
	}
	return n
}

// checkAnswer wants of each way what Way promises.
func checkAnswer(t *testing.T, a Answer) {
	t.Helper()
	if len(a.Ways) == 0 || a.Verdict != verdictOf(a.Ways) {
		t.Errorf("%+v: verdict %q over %d ways", a.Question, a.Verdict, len(a.Ways))
	}
	for _, w := range a.Ways {
		last := Step{OK: true}
		for _, s := range w.Steps {
			if s.Check == "" || s.What == "" {
				t.Errorf("%+v: step %+v says nothing", a.Question, s)
			}
			if !s.OK {
				last = s
			}
		}
		switch {
		case w.From == "" || w.To == "" || w.Summary == "":
			t.Errorf("%+v: %+v says nothing", a.Question, w)
		case w.Verdict == Reachable && !last.OK:
			t.Errorf("%+v: reachable, and %s", a.Question, last.What)
		case w.Verdict == NotReachable && (last.OK || w.Remedy == ""):
			t.Errorf("%+v: not reachable, for %+v, and the remedy is %q", a.Question, last, w.Remedy)
		}
	}
}
