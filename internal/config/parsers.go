package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// A Fault is what is wrong with a text, and what would be right. It does not
// say where the text is.
type Fault struct{ What, Remedy string }

// MaxHostnames is how many names a frontend may have. All of them are shown
// wherever the frontend is, and who has more of them wants a wildcard; a
// certificate seldom has as many.
const MaxHostnames = 64

// Rates that are refused are mistakes: no client opens that many, and counting
// in less time than a connection takes to be opened counts nothing.
const (
	maxRate         = 1_000_000
	shortestRatePer = 100 * time.Millisecond
	longestRatePer  = 24 * time.Hour
)

// What a health check may be made of. Answers are read only so far as it takes
// to find what is expected.
const (
	maxHealthPath = 1024
	maxExchange   = 1024
)

// ParseHostname reads a TLS server name that a frontend takes: a DNS name,
// "*." and a DNS name, or "*". It returns it in lower case and without the dot
// at its end.
func ParseHostname(s string) (string, *Fault) {
	if s == "*" {
		return s, nil
	}
	name, wildcard := strings.CutPrefix(s, "*.")
	if strings.Contains(name, "*") || wildcard && (name == "" || name == ".") {
		before, rest, _ := cutLast(s, "*")
		if before != "" || strings.HasPrefix(rest, ".") {
			_, rest, _ = strings.Cut(rest, ".")
		} // else only the dot is missing
		remedy := `write "*" for all names, and for what has none`
		if base, f := parseDNSName(rest); f == nil {
			remedy = "write " + quote("*."+base) + ", which is for every name that ends in " + quote("."+base)
		}
		return "", &Fault{quote(s) + ` has "*" where it stands for nothing`, remedy}
	}
	name, f := parseDNSName(name)
	switch {
	case f != nil:
		return "", f
	case wildcard:
		return "*." + name, nil
	}
	return name, nil
}

// ParseHostnames reads what stands between commas, as annotations have it, and
// returns it sorted.
func ParseHostnames(s string) ([]string, *Fault) {
	var names []string
	if n := strings.Count(s, ",") + 1; n > MaxHostnames {
		return nil, tooManyHostnames(n)
	}
	for part := range strings.SplitSeq(s, ",") {
		name, f := ParseHostname(strings.TrimSpace(part))
		if f != nil {
			return nil, f
		}
		if slices.Contains(names, name) {
			return nil, &Fault{"hostname " + quote(name) + " is there twice", "keep one of them"}
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func tooManyHostnames(n int) *Fault {
	return &Fault{strconv.Itoa(n) + " hostnames are more than " + strconv.Itoa(MaxHostnames), `write a wildcard such as "*.example.org" for those that end alike`}
}

// parseDNSName reads a name as clients send it in a TLS hello (RFC 6066,
// section 3): no address, no dot at the end, and other letters than those of
// ASCII in their xn-- form.
func parseDNSName(s string) (string, *Fault) {
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	if name == "" {
		return "", &Fault{quote(s) + " is not a hostname", `write a name such as "git.example.org" or "*.example.org", or "*" for whatever else comes`}
	}
	if _, rest, ok := strings.Cut(name, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		host, _, _ = strings.Cut(host, ":")
		return "", &Fault{quote(s) + " is a URL", "write only the name: " + quote(host)}
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "", &Fault{quote(s) + " is an IP address: clients that connect to one send no name", `write the name that clients ask for, or "*" for those that send none`}
	}
	if host, port, ok := cutLast(name, ":"); ok && host != "" && strings.Trim(port, "0123456789") == "" {
		return "", &Fault{quote(s) + " has a port, which names do not have", "write only the name: " + quote(host)}
	}
	// Not in name: the lower case of some other letters is ASCII.
	if strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f }) {
		return "", &Fault{quote(s) + " has letters that are not ASCII", "write its xn-- form (punycode), which is what clients send: xn--bcher-kva.example for bücher.example"}
	}
	labels := strings.Split(name, ".")
	last := labels[len(labels)-1]
	bad := slices.ContainsFunc(labels, func(label string) bool { return !dnsLabel.MatchString(label) })
	if bad || len(name) > 253 || strings.Trim(last, "0123456789") == "" {
		return "", &Fault{quote(s) + " is not a hostname", "hostnames have letters, digits, - and dots, 1 to 63 characters between dots and 253 in all, and do not end in a number"}
	}
	return name, nil
}

// ParseRate reads a number of connections in a time: "100/10s", "20/s", "5/m",
// "100/h".
func ParseRate(s string) (edge.Rate, *Fault) {
	const remedy = "write connections per time, 1 to 1000000 in 100ms to 24h, such as 100/10s or 20/s"
	count, per, ok := strings.Cut(s, "/")
	if !ok {
		if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= maxRate {
			return edge.Rate{}, &Fault{"rate " + quote(s) + " does not say in what time", "write " + strconv.Itoa(n) + "/s for seconds"}
		}
		return edge.Rate{}, &Fault{quote(s) + " is not a rate", remedy}
	}
	n, err := strconv.Atoi(count)
	if count == "" || strings.Trim(count, "0123456789") != "" {
		return edge.Rate{}, &Fault{quote(s) + " is not a rate", remedy}
	}
	text := per
	if slices.Contains([]string{"s", "m", "h"}, per) {
		text = "1" + per
	}
	d, perErr := time.ParseDuration(text)
	switch {
	case perErr != nil && per != "" && strings.Trim(per, "0123456789") == "":
		return edge.Rate{}, &Fault{"the time of rate " + quote(s) + " has no unit", "write " + shorten(count) + "/" + shorten(per) + "s for seconds"}
	case perErr != nil:
		return edge.Rate{}, &Fault{quote(s) + " is not a rate", remedy}
	case err != nil || n < 1 || n > maxRate || d < shortestRatePer || d > longestRatePer:
		return edge.Rate{}, &Fault{"rate " + quote(s) + " is out of range", remedy}
	}
	return edge.Rate{Connections: n, Per: d}, nil
}

// ParseBalance reads a way to choose backends.
func ParseBalance(s string) (edge.Balance, *Fault) {
	return word(s, "way to balance", []edge.Balance{edge.BalanceRandom, edge.BalanceLeastConnections, edge.BalanceSource})
}

// ParseDataPlane reads what moves the bytes.
func ParseDataPlane(s string) (edge.DataPlane, *Fault) {
	return word(s, "data plane", []edge.DataPlane{edge.DataPlaneProxy, edge.DataPlaneNAT})
}

// ParseProxyProtocol reads a version of the PROXY protocol.
func ParseProxyProtocol(s string) (edge.ProxyProtocol, *Fault) {
	return word(s, "PROXY protocol", []edge.ProxyProtocol{edge.ProxyProtocolNone, edge.ProxyProtocolV1, edge.ProxyProtocolV2})
}

// ParseBool reads "true" or "false".
func ParseBool(s string) (bool, *Fault) {
	switch strings.ToLower(s) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	if f := oldBool(s); f != nil {
		return false, f
	}
	return false, &Fault{quote(s) + " is not true or false", "write true or false"}
}

// oldBool finds words that YAML 1.1 took for booleans, and that people still
// write.
func oldBool(s string) *Fault {
	switch strings.ToLower(s) {
	case "yes", "on":
		return &Fault{quote(s) + " is not true or false", "write true"}
	case "no", "off":
		return &Fault{quote(s) + " is not true or false", "write false"}
	}
	return nil
}

// ParseHealthCheck reads what an annotation says of a check: "tcp", "tls",
// "http:/path" or "https:/path". What it does not say, how often and how many
// times, is that of the check given.
func ParseHealthCheck(s string, of edge.HealthCheck) (edge.HealthCheck, *Fault) {
	h := edge.HealthCheck{Interval: of.Interval, Timeout: of.Timeout, Rise: of.Rise, Fall: of.Fall}
	typ, path, hasPath := strings.Cut(s, ":")
	t, f := word(typ, "health check", []edge.CheckType{edge.CheckTCP, edge.CheckTLS, edge.CheckHTTP, edge.CheckHTTPS})
	if f != nil {
		return of, f
	}
	h.Type = t
	if !isHTTP(t) {
		if hasPath {
			return of, &Fault{"health check " + quote(s) + " has a path, and " + typ + " asks for none", "write " + typ + ", or http:/PATH"}
		}
		return h, nil
	}
	defaultsOfHTTP(&h)
	if !hasPath {
		return h, nil
	}
	// With a port, or a URL: where the backend listens is known.
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		_, tail, _ := strings.Cut(strings.TrimLeft(path, "/"), "/")
		return of, &Fault{"health check " + quote(s) + " names more than a path", "write " + quote(typ+":/"+tail) + "; the port is the backend's"}
	}
	if f := checkHealthPath(path); f != nil {
		return of, f
	}
	h.Path = path
	return h, nil
}

func isHTTP(t edge.CheckType) bool { return t == edge.CheckHTTP || t == edge.CheckHTTPS }

// defaultsOfHTTP is what is asked for where nothing else is said: a redirect
// to a login page is an answer of a server that works.
func defaultsOfHTTP(h *edge.HealthCheck) { h.Path, h.StatusMin, h.StatusMax = "/", 200, 399 }

// parseCheckType reads what a check of a file does.
func parseCheckType(s string) (edge.CheckType, *Fault) {
	return word(s, "health check", []edge.CheckType{edge.CheckTCP, edge.CheckTLS, edge.CheckHTTP, edge.CheckHTTPS, edge.CheckExchange})
}

// parseHealthHost reads whom a check asks for.
func parseHealthHost(s string) (string, *Fault) {
	name, f := parseDNSName(s)
	if f != nil {
		return "", &Fault{quote(s) + " is not a name to ask for", `write a DNS name such as "git.example.org"; without one, the backend's address is asked for`}
	}
	return name, nil
}

// checkSend and checkExpect limit what is sent and expected.
func checkSend(s string) *Fault {
	return checkExchange(s, `write something such as "PING\r\n", or leave it out`)
}

func checkExpect(s string) *Fault {
	return checkExchange(s, `write something that is in every good answer, such as "SSH-2.0"`)
}

func checkExchange(s, remedy string) *Fault {
	switch {
	case s == "":
		return &Fault{"empty", remedy}
	case len(s) > maxExchange:
		return &Fault{"has " + strconv.Itoa(len(s)) + " bytes", "write " + strconv.Itoa(maxExchange) + " or less"}
	}
	return nil
}

// checkHealthPath keeps what would end the request line, or is not sent.
func checkHealthPath(s string) *Fault {
	bad := strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' })
	switch {
	case !strings.HasPrefix(s, "/"):
		return &Fault{quote(s) + ` is not a path: it has to begin with "/"`, "write " + quote("/"+strings.TrimLeft(s, "/"))}
	case bad || len(s) > maxHealthPath:
		return &Fault{quote(s) + " is not a path", "a path has up to " + strconv.Itoa(maxHealthPath) + ` ASCII characters without spaces and "#"; others as %20`}
	}
	return nil
}

// parseStatus reads the HTTP statuses that are a success: "200-399" or "200".
func parseStatus(s string) (lo, hi int, f *Fault) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		last = first
	}
	lo, errLo := strconv.Atoi(first)
	hi, errHi := strconv.Atoi(last)
	if errLo != nil || errHi != nil || lo < 100 || hi > 599 || lo > hi || len(first) != 3 || len(last) != 3 {
		return 0, 0, &Fault{quote(s) + " is not a range of HTTP statuses", "write FIRST-LAST from 100 to 599, such as 200-399, or one such as 200"}
	}
	return lo, hi, nil
}

// word reads one of a few words.
func word[T ~string](s, noun string, have []T) (T, *Fault) {
	if slices.Contains(have, T(s)) {
		return T(s), nil
	}
	words := make([]string, len(have))
	for i, h := range have {
		words[i] = string(h)
	}
	return "", &Fault{"no " + noun + " " + quote(s), Suggest(s, "have", words)}
}
