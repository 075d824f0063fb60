package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// origin is where somebody comes from: a zone, or an interface that is in none,
// or this machine itself.
type origin struct {
	zone    *edge.Zone // nil: none
	devices []string   // by one of which its packets come in; those that this machine has
	client  netip.Addr // zero: anybody there
	local   bool       // this machine itself
	steps   []Step     // how that is known
	// why the packets of this origin cannot come in, if that is known.
	why, remedy string
}

func (o *origin) String() string {
	switch {
	case o.local:
		return "this machine itself"
	case o.client.IsValid() && o.zone != nil:
		return o.client.String() + " in zone " + o.zone.Name
	case o.client.IsValid() && len(o.devices) > 0:
		return o.client.String() + " by " + o.devices[0]
	case o.client.IsValid():
		return o.client.String()
	case o.zone != nil:
		return "zone " + o.zone.Name
	default:
		return "whoever comes in by " + strings.Join(o.devices, ", ")
	}
}

func (o *origin) zoneName() string {
	if o.zone == nil {
		return ""
	}
	return o.zone.Name
}

// origins reads Question.From.
func (e *engine) origins(from string) ([]origin, error) {
	from = strings.TrimSpace(from)
	if addr, err := netip.ParseAddr(strings.Trim(from, "[]")); err == nil && addr.Zone() == "" {
		return e.originsOf(addr.Unmap())
	}
	var all []origin
	var names []string
	for i := range e.Config.Zones {
		z := &e.Config.Zones[i]
		names = append(names, z.Name)
		if from == "" || from == z.Name {
			all = append(all, e.fromZone(z))
		}
	}
	switch {
	case len(all) > 0:
		return all, nil
	case from != "" && len(names) == 0:
		return nil, fmt.Errorf("no zone named %q, and no address of a client; the configuration has no zones, so ask without, or from an address", from)
	case from != "":
		return nil, fmt.Errorf("no zone named %q, and no address of a client; %s", from, config.Suggest(from, "have", names))
	}
	// Without zones each interface is as good as another.
	outside := origin{}
	for _, i := range e.Interfaces {
		if i.Name != "lo" {
			outside.devices = append(outside.devices, i.Name)
		}
	}
	all = append(all, e.itself(netip.Addr{}))
	if len(outside.devices) > 0 {
		outside.steps = []Step{{"zone", true, "the configuration has no zones: all interfaces are alike", ""}}
		all = append(all, outside)
	}
	return all, nil
}

func (e *engine) itself(client netip.Addr) origin {
	return origin{local: true, client: client, steps: []Step{{"zone", true, "what this machine sends to itself comes in by no interface", ""}}}
}

func (e *engine) fromZone(z *edge.Zone) origin {
	o := origin{zone: z, steps: []Step{{"zone", true, fmt.Sprintf("zone %s is %s", z.Name, strings.Join(z.Interfaces, ", ")), z.Pos.String()}}}
	e.addDevices(&o, z.Interfaces)
	return o
}

// addDevices adds the interfaces by which packets can come in now.
func (e *engine) addDevices(o *origin, names []string) {
	var away []Step
	for _, name := range names {
		device, isThere := e.devices[name]
		switch {
		case isThere && device.Up:
			o.devices = append(o.devices, name)
			continue
		case isThere:
			o.why, o.remedy = fmt.Sprintf("interface %s is down, or has no cable: nobody comes in by it", name), "set it up: ip link set "+name+" up"
		default:
			o.why, o.remedy = fmt.Sprintf("there is no interface %s on this machine", name), "it opens when the interface appears; the interfaces of a zone are in zones"
		}
		away = append(away, Step{"zone", false, o.why, "interface/" + name})
	}
	if len(o.devices) > 0 { // one does without the others
		o.why, o.remedy = "", ""
		for i := range away {
			away[i].OK = true
		}
	}
	o.steps = append(o.steps, away...)
}

// originsOf are where a client can come from: the interfaces in whose networks it
// is, else the one by which an answer to it leaves.
func (e *engine) originsOf(client netip.Addr) ([]origin, error) {
	switch {
	case client.IsLoopback() || e.holder[client] != "":
		if client.IsLoopback() { // it speaks to its own addresses from those
			client = netip.Addr{}
		}
		return []origin{e.itself(client)}, nil
	case client.IsUnspecified() || client.IsMulticast():
		return nil, fmt.Errorf("%s is the address of no client; ask from a zone (%s), or from the address of a client", client, strings.Join(e.zoneNames(), ", "))
	}
	var all, outside []origin
	for _, i := range e.Interfaces {
		n := slices.IndexFunc(i.Addrs, func(p netip.Prefix) bool { return !p.IsSingleIP() && p.Contains(client) })
		if n < 0 {
			continue
		}
		o := e.fromDevice(client, i.Name, fmt.Sprintf("%s is in %s, the network of %s", client, i.Addrs[n].Masked(), i.Name))
		if o.zone != nil {
			all = append(all, o)
		} else {
			outside = append(outside, o)
		}
	}
	if all = append(all, outside...); len(all) > 0 {
		return all, nil
	}
	if client.IsLinkLocalUnicast() { // the routes know it by every interface
		return nil, fmt.Errorf("%s is a link-local address, which can be in the network of each interface, so that it is not known where it comes in; ask from a zone: %s", client, strings.Join(e.zoneNames(), ", "))
	}
	back := ""
	if e.Back != nil {
		back = e.Back(client)
	}
	if back == "" {
		return nil, fmt.Errorf("%s is in no network of this machine, and no route leads to it, so that it is not known where it comes in; ask from a zone: %s", client, strings.Join(e.zoneNames(), ", "))
	}
	return []origin{e.fromDevice(client, back, fmt.Sprintf("the route to %s leaves by %s, and its packets are taken to come in there", client, back))}, nil
}

func (e *engine) fromDevice(client netip.Addr, device, how string) origin {
	o := origin{client: client, zone: e.Config.Zone(e.zoneOf[device]), steps: []Step{{"zone", true, how, "interface/" + device}}}
	if o.zone != nil {
		o.steps = append(o.steps, Step{"zone", true, fmt.Sprintf("%s is of zone %s", device, o.zone.Name), o.zone.Pos.String()})
	} else {
		o.steps = append(o.steps, Step{"zone", true, device + " is in no zone: only what listens at no interface in particular is reached by it", "interface/" + device})
	}
	e.addDevices(&o, []string{device})
	return o
}

func (e *engine) zoneNames() []string {
	var names []string
	for _, z := range e.Config.Zones {
		names = append(names, z.Name)
	}
	if len(names) == 0 {
		return []string{"there is none"}
	}
	return names
}

// reaching leaves of several interfaces in one network, of which a client can come
// in by any, the one that has the address it speaks to: that one's hardware
// address is what the client has been told. It is not so where interfaces answer
// for each other.
func (e *engine) reaching(origins []origin, to netip.Addr) []origin {
	if len(origins) < 2 || !origins[0].client.IsValid() {
		return origins
	}
	i := slices.IndexFunc(origins, func(o origin) bool { return slices.Contains(o.devices, e.holder[to]) })
	answers := func(o origin) bool {
		return slices.ContainsFunc(o.devices, func(name string) bool { return e.devices[name].AnswersForOthers })
	}
	if i < 0 || to.Is4() && !e.pooled[to] && slices.ContainsFunc(origins, answers) {
		return origins
	}
	o := origins[i]
	o.steps = append(slices.Clone(o.steps), Step{"zone", true, fmt.Sprintf("%s is on %s, which alone answers for it in that network", to, o.devices[0]), "interface/" + o.devices[0]})
	return []origin{o}
}
