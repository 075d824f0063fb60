// Package status is what a running gatehouse says of itself. The page, the
// metrics and the JSON are three printings of the same Status.
package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// Status is one moment of a running gatehouse.
type Status struct {
	Version   string             `json:"version"`
	StartedAt time.Time          `json:"startedAt"`
	Ready     bool               `json:"ready"`
	NotReady  []string           `json:"notReady,omitempty"` // what is waited for
	Config    Config             `json:"config"`
	Cluster   *Cluster           `json:"cluster,omitempty"` // nil: none configured
	Exposures []desired.Exposure `json:"exposures"`
	Frontends []Frontend         `json:"frontends"`
	// Listeners are the doors that several frontends share by name.
	Listeners []Listener     `json:"listeners,omitempty"`
	Addresses []Address      `json:"addresses,omitempty"` // of pools: what Services have, or had until a while ago
	Pools     []Pool         `json:"pools,omitempty"`     // in file order
	Conntrack *Conntrack     `json:"conntrack,omitempty"` // nil: the kernel follows no connections
	Routes    []edge.Route   `json:"routes,omitempty"`    // to pods, as they are kept
	Router                   // what this machine is for the machines of its zones
	Problems  []edge.Problem `json:"problems"` // of the configuration files first
	Work      *Work          `json:"work,omitempty"`
}

// Closed are the exposures that are not open.
func (s Status) Closed() []desired.Exposure {
	return slices.DeleteFunc(slices.Clone(s.Exposures), func(e desired.Exposure) bool { return e.Open })
}

// Config says which configuration runs.
type Config struct {
	Files    []string       `json:"files"`
	LoadedAt time.Time      `json:"loadedAt"`           // when the running configuration was read
	Current  bool           `json:"current"`            // false: the files on disk are bad, and the last good ones go on
	Problems []edge.Problem `json:"problems,omitempty"` // of the files on disk
	Trial    *Trial         `json:"trial,omitempty"`    // what runs instead of them; nil: nothing does
}

// Trial is a configuration that runs in memory only, and that is gone back from
// unless somebody confirms it.
type Trial struct {
	Files []string  `json:"files"` // as its operator calls them
	Until time.Time `json:"until"`
	By    string    `json:"by"` // "uid 0"
}

// Says is a Trial in words.
func (t Trial) Says(now time.Time) string {
	return fmt.Sprintf("%s is on trial for %s more, by %s; unless it is confirmed the files go on then",
		strings.Join(t.Files, ", "), Duration(max(t.Until.Sub(now), 0).Round(time.Second)), t.By)
}

// Conntrack is how full the kernel's table of connections is, in which every
// connection of the nat data plane has an entry, and others of this machine too.
type Conntrack struct {
	Entries int `json:"entries"`
	Max     int `json:"max"`
}

// Full says that new connections may soon be dropped for want of an entry.
func (c Conntrack) Full() bool { return 10*c.Entries >= 9*c.Max }

// Draining is the state of a backend that is gone and has connections left.
const Draining edge.BackendState = "draining"

// Frontend is an open door, or some of the names behind one, and what went
// through it since it was opened. Of UDP, a session is a connection; of the nat
// data plane, an entry of the kernel's table of connections is.
type Frontend struct {
	Name      string         `json:"name"`
	Zone      string         `json:"zone,omitempty"`
	DataPlane edge.DataPlane `json:"dataPlane"`
	Protocol  edge.Protocol  `json:"protocol"`
	Sources   []netip.Prefix `json:"sourceRanges,omitempty"` // absent: everybody may connect
	Listen    string         `json:"listen"`
	Hostnames []string       `json:"hostnames,omitempty"` // absent: whatever comes
	Error     string         `json:"error,omitempty"`     // why it is not open
	Drain                    // closed; its last connections live on

	// What its connections are held to; absent: nothing.
	IdleTimeout             Duration `json:"idleTimeout,omitzero"`
	MaxConnections          int      `json:"maxConnections,omitempty"`
	MaxConnectionsPerClient int      `json:"maxConnectionsPerClient,omitempty"`
	MaxRatePerClient        Rate     `json:"maxRatePerClient,omitzero"`
	BanTime                 Duration `json:"banTime,omitzero"`

	Balance         edge.Balance `json:"balance,omitempty"`
	AffinityTimeout Duration     `json:"affinityTimeout,omitzero"`
	Health          string       `json:"health,omitempty"`      // how they are asked, in words; absent: not at all
	WhenAllDown     string       `json:"whenAllDown,omitempty"` // absent: try
	OnDown          string       `json:"onDown,omitempty"`      // absent: keep

	// Whose address the backends see, why, and what would make it the client's own.
	AcceptProxyProtocol []netip.Prefix     `json:"acceptProxyProtocol,omitempty"`
	SendProxyProtocol   edge.ProxyProtocol `json:"sendProxyProtocol,omitempty"` // absent: none
	Transparent         bool               `json:"transparent,omitempty"`
	Client              string             `json:"clientAddress,omitempty"` // absent: not known any more
	ClientSeen          bool               `json:"clientAddressSeen"`
	ClientRemedy        string             `json:"clientAddressRemedy,omitempty"`

	Traffic
	Rates    *Rates    `json:"rates,omitempty"`  // nil: not known yet
	Bans     int       `json:"bans,omitempty"`   // how many clients are turned away for BanTime
	Banned   []Ban     `json:"banned,omitempty"` // those of them whose ban ends first
	Backends []Backend `json:"backends,omitempty"`
}

// Rate is printed as one would write it in a configuration file: "100/10s".
type Rate edge.Rate

func (r Rate) String() string { return edge.Rate(r).String() }

// MarshalText makes JSON of it.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText has written.
func (r *Rate) UnmarshalText(text []byte) error {
	count, per, _ := strings.Cut(string(text), "/")
	n, err := strconv.Atoi(count)
	if err != nil {
		return fmt.Errorf("%q is not a rate: %w", text, err)
	}
	d, err := time.ParseDuration(per)
	if err != nil {
		return fmt.Errorf("%q is not a rate: %w", text, err)
	}
	*r = Rate{Connections: n, Per: d}
	return nil
}

// PerSecond is 0 where there is no limit.
func (r Rate) PerSecond() float64 {
	if r.Connections == 0 {
		return 0
	}
	return float64(r.Connections) / r.Per.Seconds()
}

// Ban is a client that is turned away until a time.
type Ban struct {
	Client string    `json:"client"` // an IPv4 address or an IPv6 /64
	Until  time.Time `json:"until"`
}

// Traffic is what came and went since it was opened.
type Traffic struct {
	Accepted uint64            `json:"acceptedConnections"`
	Active   uint64            `json:"activeConnections"`
	Waiting  uint64            `json:"waitingConnections"` // those of Active that have no backend yet
	Ended    map[Ending]uint64 `json:"endedConnections,omitempty"`
	Failures map[string]uint64 `json:"failures,omitempty"` // connections that got no backend, by reason
	Received uint64            `json:"receivedBytes"`      // from clients
	Sent     uint64            `json:"sentBytes"`          // to clients
	Packets  *Packets          `json:"packets,omitempty"`  // of UDP, and of all that the kernel moves
	// Connections that could not be accepted for want of descriptors or memory.
	AcceptErrors uint64 `json:"acceptErrors"`
}

// Listener is a door that frontends share by name. What comes through it is its
// own until the name is known: then a frontend has it, and has accepted it once
// more. What else it has is from before, when one frontend had all of the door.
type Listener struct {
	Zone     string        `json:"zone,omitempty"`
	Protocol edge.Protocol `json:"protocol"`
	Listen   string        `json:"listen"`
	Error    string        `json:"error,omitempty"` // why it is not open
	Drain                  // closed; names may still come
	Traffic
	Routed   uint64    `json:"routedConnections"` // given to a frontend
	Backends []Backend `json:"backends,omitempty"`
}

// Backend is what one backend of a frontend took.
type Backend struct {
	Addr     string            `json:"addr"`
	Node     string            `json:"node,omitempty"`
	State    edge.BackendState `json:"state"`
	Error    string            `json:"error,omitempty"`
	Unprobed bool              `json:"unprobed,omitempty"` // it counts as up: nothing asks it
	Drain                      // it is gone, or has weight 0; its last connections live on
	Weight   int               `json:"weight"`
	Share    float64           `json:"share"`
	Total    uint64            `json:"totalConnections"`
	Active   uint64            `json:"activeConnections"`
	Failures uint64            `json:"failures,omitempty"` // the nat data plane knows none
	Pods     []string          `json:"pods,omitempty"`     // namespace/name of those it stands for, where known
	Target   edge.Target       `json:"target,omitempty"`
	Since    time.Time         `json:"since,omitzero"`  // when it got into the State; absent: nothing asks it
	Rates    *Rates            `json:"rates,omitempty"` // of the relay, connections only; nil: not known yet
	Got      *Got              `json:"got,omitempty"`   // nil: not known yet, or no connections came
	// What the nat data plane counts for each backend.
	Received uint64   `json:"receivedBytes,omitempty"` // from clients
	Sent     uint64   `json:"sentBytes,omitempty"`     // to clients
	Packets  *Packets `json:"packets,omitempty"`
}

// Drain says how the connections of what was removed end. DrainTimeout is there
// before anything drains, too.
type Drain struct {
	Draining      bool      `json:"draining,omitempty"`
	DrainTimeout  Duration  `json:"drainTimeout,omitzero"` // absent: they end by themselves
	DrainingSince time.Time `json:"drainingSince,omitzero"`
	DrainingUntil time.Time `json:"drainingUntil,omitzero"` // when what is left will be cut; absent: never
}

// DrainFrom is the Drain of what was removed then.
func DrainFrom(since time.Time, timeout time.Duration) Drain {
	d := Drain{Draining: true, DrainTimeout: Duration(timeout), DrainingSince: since}
	if timeout > 0 && !since.IsZero() {
		d.DrainingUntil = since.Add(timeout)
	}
	return d
}

// Ends says when connections of what was removed are over.
func (d Drain) Ends(now time.Time) string {
	if d.DrainingUntil.IsZero() {
		return "until they end"
	}
	return "cut in " + max(d.DrainingUntil.Sub(now), 0).Round(time.Second).String()
}

// Ending is how a connection that had a backend has ended.
type Ending string

// The endings.
const (
	Finished     Ending = "finished"      // both sides had said all they wanted
	Reset        Ending = "reset"         // one side reset it
	IdleTimeout  Ending = "idle_timeout"  // no byte for the idle timeout
	DrainTimeout Ending = "drain_timeout" // its backend or frontend was removed, the drain timeout ago
	Lost         Ending = "lost"          // one side did not answer any more
	BackendDown  Ending = "backend_down"  // its backend was found down
	Cut          Ending = "cut"           // it was left when gatehouse stopped
)

// CheckOf says in words how backends are asked: "http /healthz every 5s, wants
// 200-399". It is empty where they are not. What a check sends is left out: it
// may be a password.
func CheckOf(h edge.HealthCheck) string {
	if h.Interval == 0 {
		return ""
	}
	words := []string{string(cmp.Or(h.Type, edge.CheckTCP))}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if h.Path != "" {
		add("%s", h.Path)
	}
	if h.Host != "" {
		add("of %s", h.Host)
	}
	if h.Port != 0 {
		add("at port %d", h.Port)
	}
	add("every %s", Duration(h.Interval))
	text := strings.Join(words, " ")
	switch {
	case h.Expect != "":
		text += fmt.Sprintf(", wants %q", h.Expect)
	case h.StatusMin != 0 && h.StatusMin == h.StatusMax:
		text += fmt.Sprintf(", wants %d", h.StatusMin)
	case h.StatusMin != 0:
		text += fmt.Sprintf(", wants %d-%d", h.StatusMin, h.StatusMax)
	}
	return text
}

// Packets are counted of UDP, and by the nat data plane of every protocol.
type Packets struct {
	Received uint64 `json:"received"` // from clients, and sent on to backends
	Sent     uint64 `json:"sent"`     // to clients
	// Dropped are those of the relay, for want of a session, a backend or room.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Duration is printed as one would write it in a configuration file: "1h30m".
type Duration time.Duration

func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText makes JSON of it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText has written.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// Age prints how long something has been: to the second, or to the hour where
// there are days.
func Age(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 2*day {
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
	return Duration(d.Round(time.Second)).String()
}

// Bytes prints a number of bytes in decimal units, as network people count.
func Bytes(n uint64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if value < 1000 {
			break
		}
		value, unit = value/1000, next
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
