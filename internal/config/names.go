package config

import (
	"regexp"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// checkInterface says what the kernel would not accept as an interface name
// (dev_valid_name in net/core/dev.c).
func checkInterface(s string) *Fault {
	const rule = `interface names have 1 to 15 bytes, without "/", ":" and spaces`
	if s == "" {
		return &Fault{"the interface name is empty", rule}
	}
	bad := strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == '/' || r == ':' || r == 0x7f || r == 0x85 || r == 0xa0
	})
	if bad || len(s) > 15 || s == "." || s == ".." {
		return &Fault{quote(s) + " is not an interface name", rule}
	}
	return nil
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// checkLabel accepts what Kubernetes accepts as a namespace (RFC 1123 label).
func checkLabel(what, s string) *Fault {
	if dnsLabel.MatchString(s) {
		return nil
	}
	f := &Fault{quote(s) + " is not a " + what, "a " + what + " has 1 to 63 small letters, digits and -, and starts and ends with a letter or digit"}
	if lower := strings.ReplaceAll(strings.ToLower(s), "_", "-"); dnsLabel.MatchString(lower) {
		f.Remedy = "did you mean " + quote(lower) + "? " + f.Remedy
	}
	return f
}

// checkFrontendName keeps names usable in tables and metrics, and apart from
// those of Services, which have a "/".
func checkFrontendName(s string) *Fault {
	bad := strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == '"' || r == 0x7f || !strconv.IsPrint(r) })
	if s == "" || bad || len(s) > 253 {
		return &Fault{quote(s) + " is not a name for a frontend", `names have 1 to 253 bytes, without spaces, quotes and "/"`}
	}
	return nil
}

func checkFileName(s string) *Fault {
	if s == "" || strings.ContainsRune(s, 0) {
		return &Fault{quote(s) + " is not a file name", "write the name of a file, or leave it out"}
	}
	return nil
}

// checkDirectory wants a name that means the same wherever gatehouse is started.
func checkDirectory(s string) *Fault {
	if !strings.HasPrefix(s, "/") || strings.ContainsRune(s, 0) {
		return &Fault{quote(s) + " is not the full name of a directory", "write one that begins with /, such as /var/lib/gatehouse"}
	}
	return nil
}

var (
	qualifiedName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	dnsSubdomain  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// checkClass accepts what the API server accepts as spec.loadBalancerClass:
// [PREFIX/]NAME.
func checkClass(s string) *Fault {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		prefix, name = "", s
	}
	if qualifiedName.MatchString(name) && (!ok || len(prefix) <= 253 && dnsSubdomain.MatchString(prefix)) {
		return nil
	}
	return &Fault{quote(s) + " is not a load balancer class", "write one such as " + DefaultClass}
}

func checkSelector(s string) *Fault {
	if _, err := edge.ParseSelector(s); err != nil {
		return &Fault{"not a label selector: " + err.Error(), `write one such as "app in (web, api), tier=front, !internal"`}
	}
	return nil
}
