// Package explain answers whether somebody reaches something through a running
// gatehouse, and why. It is pure: it looks at what was decided and at what the
// data planes have of it, and at nothing else, so that its answer is theirs.
//
//	answer, err := explain.Explain(facts, explain.Question{From: "home", To: "10.11.12.32:80"})
//
// What comes in is found a door as the kernel finds one: by the interface, the
// address and the port of the packet (see doors.go), and not by the rows that
// somebody has meant it for.
package explain

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// Question is what somebody asks, in his own words.
type Question struct {
	// From is a zone, an address of a client, or empty: from every zone.
	From string `json:"from"`
	// To is HOST:PORT, HOST:PORT/udp, NAMESPACE/SERVICE, NAMESPACE/SERVICE:PORT, the
	// name of a static frontend, or a TLS server name.
	To string `json:"to"`
}

// Facts are what answers follow from.
type Facts struct {
	Config     *config.Config
	Interfaces []edge.Interface
	Cluster    *edge.Cluster         // nil: none, or not read yet
	Hosts      map[string]netip.Addr // names in the configuration, resolved
	State      desired.State
	// Closed are the doors of State that are not open on this machine, with the
	// error.
	Closed map[edge.Door]string
	// Back is the interface that packets to an address leave by, as the kernel's
	// routes say; nil: nobody has asked them.
	Back func(netip.Addr) string
	// Leaves says whether there is a way to an address for who is bound to an
	// interface; nil: nobody has asked.
	Leaves func(to netip.Addr, device string) bool
	// Firewall are the rules that the kernel was given; nil: there are none.
	Firewall *firewall.Ruleset
	// Bans are of clients that the relay turns away now; where there are many, some
	// of them.
	Bans []Ban
}

// Ban says that a frontend turns clients away.
type Ban struct {
	edge.Door
	Frontend string       // its name
	Client   netip.Prefix // an IPv4 address or the /64 of an IPv6 one
	Until    time.Time
}

// Verdict says whether somebody gets through.
type Verdict string

// The verdicts. Some get through where source ranges leave out other clients of a
// zone, where it takes a TLS server name and the question has none, and over
// several ways of which not all lead there.
const (
	Reachable    Verdict = "reachable"
	NotReachable Verdict = "not reachable"
	Some         Verdict = "reachable by some"
)

// Answer is what there is to say.
type Answer struct {
	Question Question  `json:"question"`
	At       time.Time `json:"at"`
	Verdict  Verdict   `json:"verdict"` // over all Ways
	Ways     []Way     `json:"ways"`    // at least one
}

// Way is one way from somewhere to somewhere.
type Way struct {
	From    string     `json:"from"`           // "zone home", "10.11.12.5 in zone home"
	Zone    string     `json:"zone,omitempty"` // that it comes in by
	To      string     `json:"to"`             // "10.11.12.32:80/TCP", "shop/web:80"
	Verdict Verdict    `json:"verdict"`
	Summary string     `json:"summary"`          // one sentence: by which row, or what stops it
	Remedy  string     `json:"remedy,omitempty"` // what would let it through
	Steps   []Step     `json:"steps"`            // in order; the last one that is not OK decides
	Backend []Receiver `json:"backends,omitempty"`
	Door    string     `json:"door,omitempty"` // "TCP @eth1:80"
	Name    string     `json:"frontend,omitempty"`
}

// Step is one link of the chain of reasons.
type Step struct {
	// Check is what was looked at: "zone", "address", "class", "allow", "request",
	// "port", "listener", "firewall", "hostname", "source range", "rate limit", "data plane", "backend",
	// "health", "share", "client address".
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	What   string `json:"what"`
	Source string `json:"source,omitempty"` // where that comes from: "gatehouse.yaml:14", "service/shop/web", "interface/eth1"
}

// Receiver is a backend that a connection may come to.
type Receiver struct {
	edge.Backend
	// Shares are those of the pods behind it, where they are known.
	Shares []desired.PodShare `json:"shares,omitempty"`
}

// Explain answers. The error says what about the question is none, and what
// could be asked instead.
func Explain(f Facts, q Question) (Answer, error) {
	answer := Answer{Question: q}
	e, err := newEngine(f)
	if err != nil {
		return answer, err
	}
	t := target{name: q.To}
	if !slices.Contains(e.frontendNames(), q.To) { // which may look like something else: "home:80"
		if t, err = parseTarget(q.To); err != nil {
			return answer, err
		}
	}
	origins, err := e.origins(q.From)
	if err != nil {
		return answer, err
	}
	e.everybody = strings.TrimSpace(q.From) == ""
	if answer.Ways, err = e.answer(t, origins); err != nil {
		return answer, err
	}
	answer.Ways = chosen(answer.Ways, origins)
	answer.Verdict = verdictOf(answer.Ways)
	return answer, nil
}

// chosen leaves out the ways that a client in several networks need not take: it
// is free to connect where it gets through.
func chosen(ways []Way, origins []origin) []Way {
	if len(origins) < 2 || !origins[0].client.IsValid() || verdictOf(ways) != Some {
		return ways
	}
	return slices.DeleteFunc(ways, func(w Way) bool { return w.Verdict == NotReachable })
}

// verdictOf is one over several ways.
func verdictOf(ways []Way) Verdict {
	all := func(v Verdict) bool {
		return !slices.ContainsFunc(ways, func(w Way) bool { return w.Verdict != v })
	}
	switch {
	case all(NotReachable):
		return NotReachable
	case all(Reachable):
		return Reachable
	default:
		return Some
	}
}
