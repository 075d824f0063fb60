package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// said is what a parser returned, as one text.
func said(v any, f *Fault) string {
	if f != nil {
		return f.What + "; " + f.Remedy
	}
	return fmt.Sprint(v)
}

func TestHostnamesAreWhatClientsSend(t *testing.T) {
	long := strings.Repeat("a", 63)
	const rule = "hostnames have letters, digits, - and dots, 1 to 63 characters between dots and 253 in all, and do not end in a number"
	const names = `write a name such as "git.example.org" or "*.example.org", or "*" for whatever else comes`
	const wanted = `write the name that clients ask for, or "*" for those that send none`
	const puny = "write its xn-- form (punycode), which is what clients send: xn--bcher-kva.example for bücher.example"
	const all = `write "*" for all names, and for what has none`
	tests := []struct{ text, want string }{
		{"git.example.org", "git.example.org"},
		{"Git.Example.ORG.", "git.example.org"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"localhost", "localhost"},
		{"4.example", "4.example"},
		{long + "." + long + "." + long + "." + strings.Repeat("a", 61), long + "." + long + "." + long + "." + strings.Repeat("a", 61)},
		{"*", "*"},
		{"*.Example.org.", "*.example.org"},
		{"*.lan", "*.lan"},
		{"", `"" is not a hostname; ` + names},
		{".", `"." is not a hostname; ` + names},
		{"*.", `"*." has "*" where it stands for nothing; ` + all},
		{"*..", `"*.." has "*" where it stands for nothing; ` + all},
		{"*.*", `"*.*" has "*" where it stands for nothing; ` + all},
		{"git.*", `"git.*" has "*" where it stands for nothing; ` + all},
		{"a.*.b.org", `"a.*.b.org" has "*" where it stands for nothing; write "*.b.org", which is for every name that ends in ".b.org"`},
		{"*a.b", `"*a.b" has "*" where it stands for nothing; write "*.a.b", which is for every name that ends in ".a.b"`},
		{"a*.b", `"a*.b" has "*" where it stands for nothing; write "*.b", which is for every name that ends in ".b"`},
		{"*a*.b", `"*a*.b" has "*" where it stands for nothing; write "*.b", which is for every name that ends in ".b"`},
		{"*.*.b", `"*.*.b" has "*" where it stands for nothing; write "*.b", which is for every name that ends in ".b"`},
		{"**", `"**" has "*" where it stands for nothing; ` + all},
		{"10.0.0.1", `"10.0.0.1" is an IP address: clients that connect to one send no name; ` + wanted},
		{"fd00::1", `"fd00::1" is an IP address: clients that connect to one send no name; ` + wanted},
		{"[fd00::1]", `"[fd00::1]" is an IP address: clients that connect to one send no name; ` + wanted},
		{"*.10.0.0.1", `"10.0.0.1" is an IP address: clients that connect to one send no name; ` + wanted},
		{"10.0.0.256", `"10.0.0.256" is not a hostname; ` + rule},
		{"bücher.example", `"bücher.example" has letters that are not ASCII; ` + puny},
		{"*.bücher.example", `"bücher.example" has letters that are not ASCII; ` + puny},
		{"\u212aelvin.lan", "\"\u212aelvin.lan\" has letters that are not ASCII; " + puny}, // its lower case is k
		{"git.example.org:443", `"git.example.org:443" has a port, which names do not have; write only the name: "git.example.org"`},
		{"https://git.example.org:443/x", `"https://git.example.org:443/x" is a URL; write only the name: "git.example.org"`},
		{"a b", `"a b" is not a hostname; ` + rule},
		{"a_b.lan", `"a_b.lan" is not a hostname; ` + rule},
		{"-a.lan", `"-a.lan" is not a hostname; ` + rule},
		{"a..lan", `"a..lan" is not a hostname; ` + rule},
		{"a.lan..", `"a.lan.." is not a hostname; ` + rule},
		{".lan", `".lan" is not a hostname; ` + rule},
		{"a" + long + ".lan", `"` + strings.Repeat("a", 60) + `…" is not a hostname; ` + rule},
		{long + "." + long + "." + long + "." + long, `"` + strings.Repeat("a", 60) + `…" is not a hostname; ` + rule},
		{"a\nb", `"a\nb" is not a hostname; ` + rule},
	}
	for _, tt := range tests {
		if got := said(ParseHostname(tt.text)); got != tt.want {
			t.Errorf("%q: got\n%s\nwant\n%s", tt.text, got, tt.want)
		}
	}
}

func TestHostnamesOfAnAnnotation(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("a.lan,", MaxHostnames+1), ",")
	tests := []struct{ text, want string }{
		{"b.lan, A.lan ,*", "[* a.lan b.lan]"},
		{"a.lan", "[a.lan]"},
		{"", `"" is not a hostname; write a name such as "git.example.org" or "*.example.org", or "*" for whatever else comes`},
		{"a.lan,", `"" is not a hostname; write a name such as "git.example.org" or "*.example.org", or "*" for whatever else comes`},
		{"a.lan,A.lan.", `hostname "a.lan" is there twice; keep one of them`},
		{many, `65 hostnames are more than 64; write a wildcard such as "*.example.org" for those that end alike`},
	}
	for _, tt := range tests {
		if got := said(ParseHostnames(tt.text)); got != tt.want {
			t.Errorf("%q: got\n%s\nwant\n%s", tt.text, got, tt.want)
		}
	}
}

func TestRates(t *testing.T) {
	const remedy = "write connections per time, 1 to 1000000 in 100ms to 24h, such as 100/10s or 20/s"
	tests := []struct{ text, want string }{
		{"100/10s", "100/10s"},
		{"20/s", "20/1s"},
		{"5/m", "5/1m"},
		{"100/h", "100/1h"},
		{"1/100ms", "1/100ms"},
		{"1000000/24h", "1000000/24h"},
		{"7/1m30s", "7/1m30s"},
		{"0/s", `rate "0/s" is out of range; ` + remedy},
		{"1000001/s", `rate "1000001/s" is out of range; ` + remedy},
		{"99999999999999999999/s", `rate "99999999999999999999/s" is out of range; ` + remedy},
		{"1/99ms", `rate "1/99ms" is out of range; ` + remedy},
		{"1/25h", `rate "1/25h" is out of range; ` + remedy},
		{"1/-1s", `rate "1/-1s" is out of range; ` + remedy},
		{"100", `rate "100" does not say in what time; write 100/s for seconds`},
		{"100/10", `the time of rate "100/10" has no unit; write 100/10s for seconds`},
		{"-1/s", `"-1/s" is not a rate; ` + remedy},
		{"+1/s", `"+1/s" is not a rate; ` + remedy},
		{"many/s", `"many/s" is not a rate; ` + remedy},
		{"1/", `"1/" is not a rate; ` + remedy},
		{"/s", `"/s" is not a rate; ` + remedy},
		{"1/d", `"1/d" is not a rate; ` + remedy},
		{"1/s/s", `"1/s/s" is not a rate; ` + remedy},
		{"", `"" is not a rate; ` + remedy},
	}
	for _, tt := range tests {
		if got := said(ParseRate(tt.text)); got != tt.want {
			t.Errorf("%q: got\n%s\nwant\n%s", tt.text, got, tt.want)
		}
	}
}

func TestWordsOfAnnotations(t *testing.T) {
	tests := []struct{ got, want string }{
		{said(ParseBalance("leastConnections")), "leastConnections"},
		{said(ParseBalance("least-connections")), `no way to balance "least-connections"; did you mean "leastConnections"? have random, leastConnections, source`},
		{said(ParseProxyProtocol("v2")), "v2"},
		{said(ParseProxyProtocol("2")), `no PROXY protocol "2"; did you mean "v2"? have none, v1, v2`},
		{said(ParseBool("true")), "true"},
		{said(ParseBool("False")), "false"},
		{said(ParseBool("yes")), `"yes" is not true or false; write true`},
		{said(ParseBool("off")), `"off" is not true or false; write false`},
		{said(ParseBool("1")), `"1" is not true or false; write true or false`},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got\n%s\nwant\n%s", tt.got, tt.want)
		}
	}
}

// TestAHealthCheckOfAnAnnotationKeepsHowOften: and nothing else of what the
// operator has set, which was for another kind of check.
func TestAHealthCheckOfAnAnnotationKeepsHowOften(t *testing.T) {
	of := edge.HealthCheck{
		Type: edge.CheckExchange, Interval: 3 * time.Second, Timeout: 2 * time.Second, Rise: 4, Fall: 5,
		Port: 1, Path: "/old", Host: "old", StatusMin: 100, StatusMax: 599, Send: "PING", Expect: "PONG",
	}
	with := func(typ edge.CheckType, path string, lo, hi int) string {
		return fmt.Sprint(edge.HealthCheck{Type: typ, Interval: 3 * time.Second, Timeout: 2 * time.Second, Rise: 4, Fall: 5, Path: path, StatusMin: lo, StatusMax: hi})
	}
	tests := []struct{ text, want string }{
		{"tcp", with(edge.CheckTCP, "", 0, 0)},
		{"tls", with(edge.CheckTLS, "", 0, 0)},
		{"http", with(edge.CheckHTTP, "/", 200, 399)},
		{"http:/healthz?full=1", with(edge.CheckHTTP, "/healthz?full=1", 200, 399)},
		{"https:/a:b", with(edge.CheckHTTPS, "/a:b", 200, 399)},
		{"exchange", `no health check "exchange"; have tcp, tls, http, https`},
		{"", `no health check ""; have tcp, tls, http, https`},
		{"tcp:/x", `health check "tcp:/x" has a path, and tcp asks for none; write tcp, or http:/PATH`},
		{"http:8080/x", `health check "http:8080/x" names more than a path; write "http:/x"; the port is the backend's`},
		{"https://host/x", `health check "https://host/x" names more than a path; write "https:/x"; the port is the backend's`},
		{"http:", `health check "http:" names more than a path; write "http:/"; the port is the backend's`},
		{"http:/a b", `"/a b" is not a path; a path has up to 1024 ASCII characters without spaces and "#"; others as %20`},
		{"http:/a\r\nX: y", `"/a\r\nX: y" is not a path; a path has up to 1024 ASCII characters without spaces and "#"; others as %20`},
	}
	for _, tt := range tests {
		if got := said(ParseHealthCheck(tt.text, of)); got != tt.want {
			t.Errorf("%q: got\n%s\nwant\n%s", tt.text, got, tt.want)
		}
	}
}

// FuzzParseHostname: a name that is accepted is accepted as it is from then on,
// and a remedy that quotes a name quotes one that is right.
func FuzzParseHostname(f *testing.F) {
	for _, s := range []string{"git.example.org", "*.Example.org.", "*", "*a.b", "10.0.0.1", "https://a.lan/", "a.lan:1", "bücher.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, fault := ParseHostname(s)
		if fault != nil {
			if name != "" || fault.What == "" || fault.Remedy == "" || strings.ContainsAny(fault.What+fault.Remedy, "\r\n") {
				t.Fatalf("%q: %q, %+v", s, name, fault)
			}
			return
		}
		again, fault := ParseHostname(name)
		if fault != nil || again != name || name != strings.ToLower(name) || len(name) > 255 || strings.HasSuffix(name, ".") {
			t.Fatalf("%q is read as %q, which is read as %q (%+v)", s, name, again, fault)
		}
		if list, fault := ParseHostnames(name); fault != nil || !slices.Equal(list, []string{name}) {
			t.Fatalf("%q as a list: %q, %+v", name, list, fault)
		}
	})
}

// FuzzParseRate: what is accepted is printed so that it is read as the same.
func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"100/10s", "20/s", "5/m", "1/1h10m", "1/100ms", "100", "1/1.5s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, fault := ParseRate(s)
		if fault != nil {
			return
		}
		if again, fault := ParseRate(r.String()); fault != nil || again != r {
			t.Fatalf("%q is %+v, printed %q, which is %+v (%+v)", s, r, r, again, fault)
		}
	})
}

// FuzzParseRange: what is accepted is printed so that it is read as the same, and
// has no address that nobody can be given.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"10.11.12.64-10.11.12.79", "10.11.12.64/28", "fd00::1000/120", "10.0.0.1", "::-::1", "0.0.0.0/0", "1.2.3.4-1.2.3.3", "::/0", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, fault := parseRange(s)
		if fault != nil {
			if fault.What == "" || fault.Remedy == "" {
				t.Errorf("%q: %+v", s, fault)
			}
			return
		}
		if r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) || !r.Contains(r.First) || !r.Contains(r.Last) {
			t.Errorf("%q: %v is no range", s, r)
		}
		for _, a := range []netip.Addr{r.First, r.Last} {
			if a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
				t.Errorf("%q has %s", s, a)
			}
		}
		if again, fault := parseRange(r.String()); fault != nil || again != r {
			t.Errorf("%q is %v, which is read as %v, %v", s, r, again, fault)
		}
	})
}
