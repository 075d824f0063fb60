package explain

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// engine is Facts, made to look things up.
type engine struct {
	Facts
	devices  map[string]edge.Interface
	zoneOf   map[string]string     // of an interface
	holder   map[netip.Addr]string // the interface that has an address
	pooled   map[netip.Addr]bool   // addresses that the wall is around
	doors    map[edge.Door][]*edge.Frontend
	rows     map[rowKey]*desired.Exposure
	wanted   map[rowKey]bool // each row of State, whatever its protocol
	services map[string]*edge.Service
	// everybody says that the question is not about one zone or client.
	everybody bool
}

// rowKey finds the Exposure that a Frontend is of.
type rowKey struct {
	protocol edge.Protocol
	zone     string
	name     string
}

func newEngine(f Facts) (*engine, error) {
	if f.Config == nil {
		return nil, errors.New("nothing has been decided yet; ask again in a moment")
	}
	e := &engine{
		Facts: f, devices: map[string]edge.Interface{}, zoneOf: map[string]string{}, holder: map[netip.Addr]string{},
		pooled: map[netip.Addr]bool{}, doors: map[edge.Door][]*edge.Frontend{}, rows: map[rowKey]*desired.Exposure{},
		wanted: make(map[rowKey]bool, len(f.State.Exposures)), services: map[string]*edge.Service{},
	}
	for _, z := range f.Config.Zones {
		for _, device := range z.Interfaces {
			e.zoneOf[device] = z.Name
		}
	}
	for _, i := range f.Interfaces {
		e.devices[i.Name] = i
		for _, p := range i.Addrs {
			e.holder[p.Addr()] = i.Name
			// One that no Service has any more stays until its last connection ends, and
			// the wall around it.
			if p.IsSingleIP() && e.poolOf(p.Addr()) != "" {
				e.pooled[p.Addr()] = true
			}
		}
	}
	for _, a := range f.State.Addresses {
		e.pooled[a.Addr] = true
	}
	for i := range f.State.Frontends {
		fe := &f.State.Frontends[i]
		e.doors[fe.Door] = append(e.doors[fe.Door], fe)
	}
	for i := range f.State.Exposures {
		row := &f.State.Exposures[i]
		e.wanted[rowKey{zone: row.Zone, name: row.Name}] = true
		if row.Port != 0 {
			e.rows[rowKey{row.Protocol, row.Zone, row.Name}] = row
		}
	}
	if f.Cluster != nil {
		for i := range f.Cluster.Services {
			e.services[f.Cluster.Services[i].Key()] = &f.Cluster.Services[i]
		}
	}
	return e, nil
}

func (e *engine) poolOf(a netip.Addr) string {
	for i := range e.Config.Pools {
		for _, r := range e.Config.Pools[i].Addresses {
			if r.Contains(a) {
				return e.Config.Pools[i].Name
			}
		}
	}
	return ""
}

func (e *engine) rowOf(f *edge.Frontend) *desired.Exposure {
	if row := e.rows[rowKey{f.Protocol, f.Zone, f.Name}]; row != nil {
		return row
	}
	return &desired.Exposure{Name: f.Name, Zone: f.Zone, Protocol: f.Protocol, Port: f.Listen.Port, DataPlane: f.DataPlane, Why: f.Why, Open: true, Backends: f.Backends}
}

// packet is the first one of a connection.
type packet struct {
	device   string // that it comes in by; of what this machine sends itself, the one that has the address
	local    bool   // this machine sends it to itself
	to       netip.AddrPort
	protocol edge.Protocol
}

// doorsFor are the doors that a packet can be for, the one first that the kernel
// gives it to (inet_lookup_listener, udp4_lib_lookup: a socket at the address
// comes before one at all of them, and one of another interface never). The nat
// data plane has rules instead, in the same order: those for an address of its
// own are alone there (internal/nat, dstnat).
//
// A packet for an address of a pool passes the wall around it (internal/vip)
// only where there is a door at that address; what this machine sends itself
// does not meet the wall.
func (e *engine) doorsFor(p packet) []edge.Door {
	addr, port := p.to.Addr(), p.to.Port()
	listens := []edge.Listen{{Device: p.device, Addr: addr, Port: port}, {Addr: addr, Port: port}}
	if !e.walled(p) {
		listens = append(listens, edge.Listen{Device: p.device, Port: port}, edge.Listen{Port: port})
	}
	doors := make([]edge.Door, 0, len(listens))
	for _, l := range listens {
		doors = append(doors, edge.Door{Protocol: p.protocol, Listen: l})
	}
	return doors
}

func (e *engine) walled(p packet) bool { return !p.local && e.pooled[p.to.Addr()] }

// find is the door that a packet is given to, with the frontends behind it. What
// this machine sends itself, the nat data plane does not see: kernel says that
// there would have been a door.
func (e *engine) find(p packet) (door edge.Door, behind []*edge.Frontend, kernel *edge.Frontend) {
	if p.to.Addr().IsLoopback() && !p.local {
		return edge.Door{}, nil, nil // no packet from elsewhere has such an address
	}
	for _, door := range e.doorsFor(p) {
		behind := e.doors[door]
		switch {
		case len(behind) == 0:
		case p.local && behind[0].DataPlane == edge.DataPlaneNAT:
			kernel = behind[0]
		default:
			return door, behind, nil
		}
	}
	return edge.Door{}, nil, kernel
}

// choose is the frontend that takes a TLS server name (internal/relay, names);
// nil: none does. The empty name is that of who says none.
func choose(behind []*edge.Frontend, name string) *edge.Frontend {
	if len(behind) == 1 && len(behind[0].Hostnames) == 0 {
		return behind[0]
	}
	with := func(hostname string) *edge.Frontend {
		i := slices.IndexFunc(behind, func(f *edge.Frontend) bool { return slices.Contains(f.Hostnames, hostname) })
		if i < 0 {
			return nil
		}
		return behind[i]
	}
	if name != "" {
		if f := with(name); f != nil {
			return f
		}
		for rest := name; ; {
			dot := strings.IndexByte(rest, '.')
			if dot < 0 {
				break
			}
			if f := with("*" + rest[dot:]); f != nil {
				return f
			}
			rest = rest[dot+1:]
		}
	}
	return with("*")
}

// hostnamesOf are all names that a door is shared by.
func hostnamesOf(behind []*edge.Frontend) []string {
	var names []string
	for _, f := range behind {
		names = append(names, f.Hostnames...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
