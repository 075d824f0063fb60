// Package status is what a running gatehouse says of itself. The page, the
// metrics and the JSON are three printings of the same Status.
package status

import (
	"net/netip"
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
	Problems  []edge.Problem     `json:"problems"` // of the configuration files first
}

// Config says which configuration runs.
type Config struct {
	Files    []string       `json:"files"`
	LoadedAt time.Time      `json:"loadedAt"`           // when the running configuration was read
	Current  bool           `json:"current"`            // false: the files on disk are bad, and the last good ones go on
	Problems []edge.Problem `json:"problems,omitempty"` // of the files on disk
}

// Cluster says how gatehouse stands with the Kubernetes API.
type Cluster struct {
	Synced   bool   `json:"synced"` // everything was read at least once
	Error    string `json:"error,omitempty"`
	Services int    `json:"services"` // of type LoadBalancer
	Nodes    int    `json:"nodes"`
}

// Draining is the state of a backend that is gone and has connections left.
const Draining edge.BackendState = "draining"

// Frontend is an open door and what went through it since it was opened. Of
// UDP, a session is a connection.
type Frontend struct {
	Name     string         `json:"name"`
	Zone     string         `json:"zone,omitempty"`
	Protocol edge.Protocol  `json:"protocol"`
	Sources  []netip.Prefix `json:"sourceRanges,omitempty"` // absent: everybody may connect
	Listen   string         `json:"listen"`
	Error    string         `json:"error,omitempty"` // why it is not open
	Drain                   // closed; its last connections live on

	// What its connections are held to; absent: nothing.
	IdleTimeout             Duration `json:"idleTimeout,omitzero"`
	MaxConnections          int      `json:"maxConnections,omitempty"`
	MaxConnectionsPerClient int      `json:"maxConnectionsPerClient,omitempty"`

	Accepted uint64            `json:"acceptedConnections"`
	Active   uint64            `json:"activeConnections"`
	Waiting  uint64            `json:"waitingConnections"` // those of Active that have no backend yet
	Ended    map[Ending]uint64 `json:"endedConnections,omitempty"`
	Failures map[string]uint64 `json:"failures,omitempty"` // connections that got no backend, by reason
	Received uint64            `json:"receivedBytes"`      // from clients
	Sent     uint64            `json:"sentBytes"`          // to clients
	Packets  *Packets          `json:"packets,omitempty"`  // of UDP
	// Connections that could not be accepted for want of descriptors or memory.
	AcceptErrors uint64    `json:"acceptErrors"`
	Backends     []Backend `json:"backends,omitempty"`
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
	Failures uint64            `json:"failures"`
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

// Ending is how a connection that had a backend has ended.
type Ending string

// The endings.
const (
	Finished     Ending = "finished"      // both sides had said all they wanted
	Reset        Ending = "reset"         // one side reset it
	IdleTimeout  Ending = "idle_timeout"  // no byte for the idle timeout
	DrainTimeout Ending = "drain_timeout" // its backend or frontend was removed, the drain timeout ago
	Lost         Ending = "lost"          // one side did not answer any more
	Cut          Ending = "cut"           // it was left when gatehouse stopped
)

// Packets are counted of UDP.
type Packets struct {
	Received uint64 `json:"received"` // from clients, and sent on to backends
	Sent     uint64 `json:"sent"`     // to clients
	Dropped  uint64 `json:"dropped"`  // for want of a session, a backend or room
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
