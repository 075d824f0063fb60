package config

import (
	"cmp"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

const portRange = "ports are 1 to 65535"

// parsePort reads the port at the end of an address.
func parsePort(s string) (uint16, *Fault) {
	if s == "" {
		return 0, &Fault{"the port is missing after the colon", portRange}
	}
	n, err := strconv.Atoi(s)
	switch {
	case strings.Trim(s, "0123456789") != "":
		return 0, &Fault{"port " + quote(s) + " is not a number", portRange}
	case err != nil || n < 1 || n > 65535:
		return 0, &Fault{"port " + shorten(s) + " is out of range", portRange}
	case strconv.Itoa(n) != s:
		return 0, &Fault{"port " + shorten(s) + " has zeros in front", "write " + strconv.Itoa(n)}
	}
	return uint16(n), nil
}

func shorten(digits string) string {
	if len(digits) > maxShown {
		return digits[:maxShown] + "…"
	}
	return digits
}

// parseBind reads the bind of an l4proxy file: as parseListen does, and "80"
// is ":80".
func parseBind(s string) (Listen, *Fault) {
	if s != "" && strings.Trim(s, "0123456789") == "" {
		s = ":" + s
	}
	return parseListen(s)
}

// parseListen reads ":80", "10.0.0.1:80", "[::1]:80", "name:80" or "@eth1:80".
func parseListen(s string) (Listen, *Fault) {
	var l Listen
	var f *Fault
	if device, ok := strings.CutPrefix(s, "@"); ok {
		name, port, ok := cutLast(device, ":")
		if !ok {
			return l, &Fault{quote(s) + " has no port", `write "@` + cmp.Or(name, "eth1") + `:80", with the port wanted`}
		}
		if f := checkInterface(name); f != nil {
			return l, f
		}
		l.Device = name
		l.Port, f = parsePort(port)
		return l, f
	}
	if host, port, ok := strings.Cut(s, ":"); ok && host == "*" {
		return l, &Fault{quote(s) + " is not an address", "write " + quote(":"+port) + " for every address"}
	}
	hp, f := parseHostPort(s)
	if f != nil {
		return l, f
	}
	if a, ok := hp.Addr(); ok && a.IsMulticast() {
		return l, &Fault{hp.Host + " is a multicast address", "write an address of this machine"}
	}
	return Listen{Host: hp.Host, Port: hp.Port}, nil
}

// String prints the form that the file takes.
func (l Listen) String() string {
	port := strconv.Itoa(int(l.Port))
	switch {
	case l.Device != "":
		return "@" + l.Device + ":" + port
	case strings.Contains(l.Host, ":"):
		return "[" + l.Host + "]:" + port
	default:
		return l.Host + ":" + port
	}
}

// isLoopback says whether only this machine can connect, as far as one can say
// without asking what a name stands for.
func (l Listen) isLoopback() bool {
	a, err := netip.ParseAddr(canonicalHost(l.Host))
	return l.Device == "lo" || err == nil && a.IsLoopback()
}

// hears says whether what this machine connects to comes in here, as far as one
// can say without asking what a name stands for.
func (l Listen) hears(hp edge.HostPort) bool {
	host, to := canonicalHost(l.Host), canonicalHost(hp.Host)
	a, err := netip.ParseAddr(to)
	loopback := err == nil && a.IsLoopback()
	switch {
	case l.Port != hp.Port:
		return false
	case l.Device != "":
		return l.Device == "lo" && loopback
	}
	return host == to || host == "" && loopback
}

// parseAdmin reads the listen address of the admin block. What it serves is
// for operators, so it listens where it was told to and nowhere else: names,
// which stand for other addresses tomorrow, are refused.
func parseAdmin(s string) (edge.HostPort, *Fault) {
	hp, f := parseHostPort(s)
	if f != nil {
		return hp, f
	}
	if hp.Host == "" {
		return hp, &Fault{quote(s) + " would listen on every interface", "write " + quote("127.0.0.1"+s) + ", or the address wanted"}
	}
	a, ok := hp.Addr()
	if !ok && !strings.EqualFold(hp.Host, "localhost") {
		return hp, &Fault{quote(hp.Host) + " is a name", "write an IP address, such as " + quote("127.0.0.1:"+strconv.Itoa(int(hp.Port)))}
	}
	if ok && a.IsMulticast() {
		return hp, &Fault{hp.Host + " is a multicast address", "write an address of this machine"}
	}
	return hp, nil
}

// canonicalHost makes hosts equal that are written differently.
func canonicalHost(s string) string {
	s = strings.TrimSuffix(strings.ToLower(s), ".")
	switch s {
	case "localhost":
		return "127.0.0.1"
	case "0.0.0.0", "::": // what net.Listen makes of either: every address of both families
		return ""
	}
	return s
}

// parseBackend reads the address of a backend.
func parseBackend(s string) (edge.HostPort, *Fault) {
	hp, f := parseHostPort(s)
	if f != nil {
		return hp, f
	}
	if hp.Host == "" {
		return hp, &Fault{quote(s) + " has no host", "write the address to connect to, such as " + quote("127.0.0.1"+s)}
	}
	if a, ok := hp.Addr(); ok && (a.IsUnspecified() || a.IsMulticast()) {
		return hp, &Fault{hp.Host + " is not an address to connect to", "write the address of the backend"}
	}
	return hp, nil
}

// parseHostPort reads HOST:PORT, where HOST may be empty, an IP address (IPv6
// in brackets) or a host name.
func parseHostPort(s string) (edge.HostPort, *Fault) {
	var hp edge.HostPort
	var f *Fault
	var port string
	if inner, ok := strings.CutPrefix(s, "["); ok {
		host, rest, closed := strings.Cut(inner, "]")
		if !closed {
			return hp, &Fault{quote(s) + ` has "[" without "]"`, "write an IPv6 address and port as [::1]:80"}
		}
		a, err := netip.ParseAddr(host)
		switch {
		case err != nil || !a.Is6():
			return hp, &Fault{quote(host) + " is not an IPv6 address", "brackets are for IPv6 addresses, such as [::1]:80"}
		case a.Zone() != "":
			return hp, &Fault{quote(host) + " names an interface", "link-local addresses are not supported; write an address without %"}
		case !strings.HasPrefix(rest, ":"):
			return hp, &Fault{quote(s) + " has no port", "write " + quote("["+host+"]:80") + ", with the port wanted"}
		}
		hp.Host, port = a.Unmap().String(), rest[1:]
	} else {
		if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
			return hp, &Fault{quote(s) + " is an IPv6 address without brackets", "write " + bracketed(s)}
		}
		host, after, ok := cutLast(s, ":")
		switch {
		case !ok && s == "":
			return hp, &Fault{"empty", `write HOST:PORT, such as "10.0.0.1:80"`}
		case !ok && strings.Contains(s, "@"):
			name, port, _ := strings.Cut(s, "@")
			return hp, &Fault{quote(s) + " has no port", "write " + quote("@"+name+":"+cmp.Or(port, "80")) + " for an interface"}
		case !ok:
			return hp, &Fault{quote(s) + " has no port", "write " + quote(withPort(s)) + ", with the port wanted"}
		case strings.Contains(host, ":"):
			if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
				return hp, &Fault{quote(s) + " is an IPv6 address without brackets", "write " + bracketed(s)}
			}
			if strings.Contains(s, "://") {
				return hp, &Fault{quote(s) + " is a URL", "write only HOST:PORT"}
			}
			return hp, &Fault{quote(s) + " has too many colons", "write HOST:PORT; an IPv6 address goes in brackets, such as [::1]:80"}
		}
		if hp.Host, f = parseHost(host); f != nil {
			return hp, f
		}
		port = after
	}
	hp.Port, f = parsePort(port)
	return hp, f
}

// withPort is what was probably meant by an address without a port.
func withPort(s string) string {
	if _, f := parsePort(s); f == nil {
		return ":" + s
	}
	return s + ":80"
}

// bracketed is what was probably meant by IPv6 without brackets: the last
// group is a port if it can be one and the rest is an address without it.
func bracketed(s string) string {
	if host, port, ok := cutLast(s, ":"); ok {
		a, err := netip.ParseAddr(host)
		if _, f := parsePort(port); err == nil && a.Is6() && f == nil {
			return quote("[" + host + "]:" + port)
		}
	}
	return quote("["+s+"]:80") + ", with the port wanted"
}

// dnsName is letters, digits, "-" and "_" in labels of up to 63.
var dnsName = regexp.MustCompile(`^([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?\.?$`)

// parseHost reads an IPv4 address or a name. Nothing is resolved.
func parseHost(s string) (string, *Fault) {
	if s == "" {
		return "", nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String(), nil
	}
	last := strings.TrimSuffix(s, ".")
	if _, label, ok := cutLast(last, "."); ok {
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return "", &Fault{quote(s) + " is not an IP address", "write four numbers from 0 to 255, such as 10.0.0.1"}
	}
	if len(s) > 253 || !dnsName.MatchString(s) {
		return "", &Fault{quote(s) + " is neither an IP address nor a host name", "host names have letters, digits, - and dots"}
	}
	return s, nil
}

// parseNetwork reads a network of clients.
func parseNetwork(s string) (netip.Prefix, *Fault) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return p, &Fault{quote(s) + " is an address, not a network", "write " + netip.PrefixFrom(a, a.BitLen()).String()}
		}
		return p, &Fault{quote(s) + " is not a network", "write ADDRESS/BITS, such as 10.11.12.0/24"}
	}
	if p.Addr().Is4In6() {
		return p, &Fault{quote(s) + " is an IPv4 network written as IPv6", "write it as IPv4, such as 10.11.12.0/24"}
	}
	if p != p.Masked() {
		return p, &Fault{quote(s) + " has bits set after the first " + strconv.Itoa(p.Bits()), "write " + p.Masked().String()}
	}
	return p, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
