package explain

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// target is a Question.To, read. Exactly one of addr, host, service and name is
// set.
type target struct {
	addr    netip.Addr // ADDRESS:PORT
	host    string     // NAME:PORT, in lower case
	service string     // namespace/name
	name    string     // a static frontend or a TLS server name
	port    uint16     // 0: not said, of service and name only
	// portName is a port of a Service by its name, instead of port.
	portName string
	protocol edge.Protocol // empty: not said
}

// howTo is what could be asked instead.
const howTo = "ask for ADDRESS:PORT, NAME:PORT, NAMESPACE/SERVICE, NAMESPACE/SERVICE:PORT, the name of a frontend or a TLS server name; /udp after a port is UDP"

var (
	label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	// hostLabels are those of TLS server names, and of what people call machines.
	hostLabels = regexp.MustCompile(`^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*$`)
)

// maxTo is longer than any name that can be asked for: 253 characters of a name,
// twice in "NAMESPACE/SERVICE", and a port.
const maxTo = 600

// parseTarget reads what somebody asks to reach. What it stands for is not
// looked at.
func parseTarget(text string) (target, error) {
	text = strings.TrimSpace(text)
	bad := func(format string, args ...any) (target, error) {
		return target{}, fmt.Errorf(format+"; "+howTo, args...)
	}
	switch {
	case text == "":
		return bad("nothing is asked for")
	case len(text) > maxTo:
		return bad("what is asked for has %d bytes", len(text))
	case strings.Contains(text, "://"):
		return bad("%q is a URL", text)
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return bad("%q has characters that are in no name", text)
	case text[0] == ':' || text[0] == '@': // how frontends are called that have no name of their own
		return target{name: text}, nil
	}
	rest, t := text, target{}
	if i := strings.LastIndexByte(text, '/'); i >= 0 && strings.Contains(text[:i], ":") {
		switch word := edge.Protocol(strings.ToUpper(text[i+1:])); word {
		case edge.TCP, edge.UDP, edge.SCTP:
			rest, t.protocol = text[:i], word
		default:
			return bad("%q: %q is no protocol (tcp, udp or sctp)", text, text[i+1:])
		}
	}
	if namespace, name, isService := strings.Cut(rest, "/"); isService {
		return parseService(t, text, namespace, name)
	}
	bare := rest
	if strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]") {
		bare = rest[1 : len(rest)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return bad("%q has no port", a)
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		if strings.HasPrefix(rest, "*.") { // no server name, and what a frontend may be called
			return target{name: rest}, nil
		}
		t.name = rest
		if host := strings.TrimSuffix(strings.ToLower(rest), "."); hostLabels.MatchString(host) && len(host) <= 253 {
			return t, nil
		}
		return bad("%q is no name", rest)
	}
	host := rest[:i]
	var err error
	if t.port, err = parsePort(rest[i+1:]); err != nil {
		return bad("%q: %w", text, err)
	}
	if inner, v6 := strings.CutPrefix(host, "["); v6 {
		host = strings.TrimSuffix(inner, "]")
		if len(host) == len(inner) || !strings.Contains(host, ":") {
			return bad("%q: an IPv6 address and its port are written as [fd00::1]:80", text)
		}
	} else if strings.Contains(host, ":") {
		return bad("%q: an IPv6 address and its port are written as [fd00::1]:80", text)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		t.addr = a.Unmap()
		return t, nil
	}
	t.host = strings.TrimSuffix(strings.ToLower(host), ".")
	if !hostLabels.MatchString(t.host) || len(t.host) > 253 || isNumber(t.host[strings.LastIndexByte(t.host, '.')+1:]) {
		return bad("%q is neither an address nor a name", host)
	}
	return t, nil
}

// parseService reads what follows a namespace.
func parseService(t target, text, namespace, name string) (target, error) {
	port := ""
	hasPort := false
	if name, port, hasPort = strings.Cut(name, ":"); hasPort {
		switch n, err := parsePort(port); {
		case err == nil:
			t.port = n
		case label.MatchString(port) && !isNumber(port):
			t.portName = port
		default:
			return target{}, fmt.Errorf("%q: %w; %s", text, err, howTo)
		}
	}
	if !label.MatchString(namespace) || !label.MatchString(name) {
		return target{}, fmt.Errorf("%q is not the namespace and the name of a Service; %s", text, howTo)
	}
	t.service = namespace + "/" + name
	return t, nil
}

func isNumber(text string) bool { return strings.Trim(text, "0123456789") == "" }

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || !isNumber(text) {
		return 0, fmt.Errorf("%q is no port (1 to 65535)", text)
	}
	return uint16(n), nil
}

// String prints it as it is asked: what is not said is left out.
func (t target) String() string {
	port := t.portName
	if t.port != 0 {
		port = strconv.Itoa(int(t.port))
	}
	var text string
	switch {
	case t.addr.IsValid():
		text = netip.AddrPortFrom(t.addr, t.port).String()
	case t.host != "":
		text = t.host + ":" + port
	case t.service != "":
		if text = t.service; port != "" {
			text += ":" + port
		}
	default:
		text = t.name
	}
	if t.protocol != "" {
		text += "/" + strings.ToLower(string(t.protocol))
	}
	return text
}

// over is the protocol that is asked for, which is TCP where nothing is said.
func (t target) over() edge.Protocol {
	if t.protocol == "" {
		return edge.TCP
	}
	return t.protocol
}
