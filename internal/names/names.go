// Package names decides which names the machines of each zone know, and what
// they stand for. It is pure.
//
//	records := names.Build(names.Inputs{Config: c, Exposures: state.Exposures, Leases: leases})
//
// One name can stand for different addresses in different zones: those that can
// be reached from there; where there is none, the name is not known there.
package names

import (
	"net/netip"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// Inputs are what names follow from.
type Inputs struct {
	Config     *config.Config // with DNS
	Interfaces []edge.Interface
	Exposures  []desired.Exposure
	Cluster    *edge.Cluster // nil: none, or not read yet
	Leases     []edge.Lease
	// Reaches says whether machines of a zone can send something to an address of another; nil: they all can.
	Reaches func(zone string, addr netip.Addr) bool
}
