// Package status is what a running gatehouse says of itself. The page, the
// metrics and the JSON are three printings of the same Status.
package status

import (
	"net/netip"
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

// Frontend is an open door and what went through it since it was opened.
type Frontend struct {
	Name     string            `json:"name"`
	Zone     string            `json:"zone,omitempty"`
	Protocol edge.Protocol     `json:"protocol"`
	Sources  []netip.Prefix    `json:"sourceRanges,omitempty"` // absent: everybody may connect
	Listen   string            `json:"listen"`
	Error    string            `json:"error,omitempty"`    // why it is not open
	Draining bool              `json:"draining,omitempty"` // closed; its last connections live on
	Accepted uint64            `json:"acceptedConnections"`
	Active   uint64            `json:"activeConnections"`
	Received uint64            `json:"receivedBytes"` // from clients, of connections that ended
	Sent     uint64            `json:"sentBytes"`     // to clients, of connections that ended
	Failures map[string]uint64 `json:"failures,omitempty"`
	Backends []Backend         `json:"backends,omitempty"`
}

// Backend is what one backend of a frontend took.
type Backend struct {
	Addr     string            `json:"addr"`
	Node     string            `json:"node,omitempty"`
	State    edge.BackendState `json:"state"`
	Error    string            `json:"error,omitempty"`
	Weight   int               `json:"weight"`
	Share    float64           `json:"share"`
	Total    uint64            `json:"totalConnections"`
	Active   uint64            `json:"activeConnections"`
	Failures uint64            `json:"failures"`
}
