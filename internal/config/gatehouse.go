package config

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

// maxConnections is more than a machine has memory for; 0 says that there is
// no limit.
const maxConnections = 10_000_000

// maxWeight is what two bytes hold; nobody has more pods on a node.
const maxWeight = 65535

// gatehouse reads a file of gatehouse's own format.
func (f *file) gatehouse(root value) {
	top, _ := root.fields(&topBlock)
	f.zones(top.get("zones"))
	for _, v := range top.get("frontends").list() {
		f.frontend(v)
	}
	if key, ok := f.once(top, "kubernetes"); ok {
		f.kubernetes(top.get("kubernetes"), key.pos())
	}
	if _, ok := f.once(top, "stopTimeout"); ok {
		top.get("stopTimeout").duration(&f.cfg.StopTimeout, ShortestTimeout, 24*time.Hour, true)
	}
	if key, ok := f.once(top, "admin"); ok {
		f.admin(top.get("admin"), key.pos())
	}
}

// once returns the key of a block or field that may be there once in all files.
func (f *file) once(top fields, block string) (key value, ok bool) {
	key, ok = top.keys[block]
	if !ok {
		return key, false
	}
	if first, ok := f.blocks[block]; ok {
		key.problem("defined twice", "the other one is at "+first.String()+"; keep one of them")
		return key, false
	}
	f.blocks[block] = key.pos()
	return key, true
}

func (f *file) zones(v value) {
	if !v.absent() && v.node.Kind != yaml.MappingNode {
		f.zonesUnknown = true
	}
	for _, e := range v.entries() {
		if flt := checkLabel("zone name", e.key); flt != nil {
			e.keyAt.fault(flt)
		}
		if other := f.cfg.Zone(e.key); other != nil {
			e.keyAt.problem("defined twice", "the other one is at "+other.Pos.String()+"; give one of them another name")
			continue
		}
		zone := edge.Zone{Name: e.key, Pos: e.keyAt.pos()}
		if m, ok := e.value.fields(&zoneBlock); ok {
			zone.Interfaces = f.interfaces(m.need("interfaces"), e.key)
		}
		f.cfg.Zones = append(f.cfg.Zones, zone)
		f.zoneNamed[e.key] = true
	}
}

func (f *file) interfaces(v value, zone string) []string {
	if v.emptyList() {
		v.problem("a zone without interfaces", "write interfaces: [eth1], or remove the zone")
	}
	var names []string
	for _, t := range v.texts(checkInterface) {
		if other, ok := f.members[t.text]; ok {
			t.at.problem("interface "+t.text+" is in two zones", "it is in zone "+other.zone+" at "+other.pos.String()+"; keep it in one of them")
			continue
		}
		f.members[t.text] = member{zone, t.at.pos()}
		names = append(names, t.text)
	}
	return names
}

func (f *file) frontend(v value) {
	m, ok := v.fields(&frontendBlock)
	if !ok {
		return
	}
	fe := Frontend{Pos: v.pos(), Health: DefaultHealth, Protocol: edge.TCP, Terms: DefaultTerms}
	m.get("name").checked(&fe.Name, checkFrontendName)
	if p, ok := choice(m.get("protocol"), "protocol", []edge.Protocol{edge.TCP, edge.UDP}, []edge.Protocol{edge.SCTP}); ok {
		fe.Protocol = p
	}
	choice(m.get("dataPlane"), "data plane", []string{"proxy"}, []string{"nat"})
	choice(m.get("balance"), "way to balance", []string{"random"}, []string{"leastConnections", "source"})
	choice(m.get("sendProxyProtocol"), "PROXY protocol", []string{"none"}, []string{"v1", "v2"})
	zones := f.opened(v, m, &fe)
	fe.SourceRanges = m.get("sourceRanges").networks()
	m.terms(&fe.Terms)
	m.get("health").health(&fe.Health)
	if fe.Protocol == edge.UDP {
		m.udp(&fe)
	}
	fe.Backends = backends(m.need("backends"), &backendBlock)
	if zones == nil || fe.Listen == nil { // both is a problem of its own
		f.claim(&fe, m.get("listen"), zones)
	}
	f.add(fe, v, m.get("name"))
}

// terms reads what connections are held to.
func (m fields) terms(t *edge.Terms) {
	m.get("connectTimeout").duration(&t.ConnectTimeout, 10*time.Millisecond, 2*time.Minute, false)
	m.get("idleTimeout").duration(&t.IdleTimeout, ShortestTimeout, LongestTimeout, true)
	m.get("drainTimeout").duration(&t.DrainTimeout, ShortestTimeout, LongestTimeout, true)
	m.get("maxConnections").int(&t.MaxConnections, 0, maxConnections)
	m.get("maxConnectionsPerClient").int(&t.MaxConnectionsPerClient, 0, maxConnections)
}

// udp is what differs for a frontend that has no connections to watch: only
// silence ends a session, and a connection tells nothing of a backend.
func (m fields) udp(fe *Frontend) {
	idle, health := m.get("idleTimeout"), m.get("health")
	if key, ok := m.keys["connectTimeout"]; ok {
		key.problem("nothing is waited for before a UDP backend is sent to", "remove connectTimeout")
	}
	switch {
	case idle.absent():
		fe.IdleTimeout = DefaultUDPIdleTimeout
	case fe.IdleTimeout == 0 && idle.isZero():
		idle.problem("UDP sessions would never end", "write idleTimeout: 30s, or the time wanted")
	}
	switch {
	case health.absent():
		fe.Health = edge.HealthCheck{}
	case fe.Health.Interval > 0:
		m.keys["health"].problem("UDP backends are not probed: a connection to them says nothing", "remove health; backends count as up")
	}
}

// opened reads where a frontend is open: zones and port, or listen.
func (f *file) opened(v value, m fields, fe *Frontend) []text {
	zones, listen, port := m.get("zones"), m.get("listen"), m.get("port")
	var n int
	if port.int(&n, 1, 65535) {
		fe.Port = uint16(n)
	}
	names := f.zoneNames(zones)
	fe.Zones = plain(names)
	if s, ok := listen.text(); ok {
		fe.Listen = listen.listen(s, parseListen)
	}
	switch {
	case zones.absent() && listen.absent():
		v.problem("has neither zones nor listen", `write zones: [NAME] and port: 80, or listen: ":80"`)
	case !zones.absent() && !listen.absent():
		m.keys["listen"].problem("a frontend has zones or listen, not both", "zones is at "+m.keys["zones"].pos().String()+"; remove one of them")
	case !listen.absent() && !port.absent():
		m.keys["port"].problem("the port is in listen already", "remove port")
	case !zones.absent() && port.absent():
		m.need("port")
	}
	if zones.emptyList() {
		zones.problem("a frontend without zones", "write zones: [NAME]")
	}
	return names
}

// listen reads a listen address with the parser for it.
func (v value) listen(s string, parse func(string) (Listen, *Fault)) *Listen {
	l, flt := parse(s)
	if flt != nil {
		v.fault(flt)
		return nil
	}
	l.Pos = v.pos()
	return &l
}

// add keeps a frontend. Its name, which is made if there is none, is its own:
// status and metrics tell frontends apart by it.
func (f *file) add(fe Frontend, v, name value) {
	made := name.absent()
	if made {
		fe.Name = madeName(&fe)
	} else {
		v = name
	}
	first, taken := f.names[fe.Name]
	switch {
	case fe.Name == "":
	case !taken:
		f.names[fe.Name] = named{v.pos(), made}
	case made && first.made: // they overlap, which is said elsewhere
	default:
		v.problem("two frontends are called "+quote(fe.Name), "the other one is at "+first.pos.String()+"; give one of them another name")
	}
	f.cfg.Frontends = append(f.cfg.Frontends, fe)
}

// madeName names a frontend after what it opens; empty if that is not known.
func madeName(fe *Frontend) string {
	suffix := ""
	if fe.Protocol == edge.UDP {
		suffix = "/UDP" // the same port can be opened for TCP too
	}
	switch {
	case fe.Listen != nil:
		return fe.Listen.String() + suffix
	case len(fe.Zones) > 0 && fe.Port > 0:
		return strings.Join(fe.Zones, ",") + ":" + strconv.Itoa(int(fe.Port)) + suffix
	}
	return ""
}

// zoneNames reads names of zones, to be looked up when all zones are known.
func (f *file) zoneNames(v value) []text {
	names := v.texts(nil)
	f.zoneRefs = append(f.zoneRefs, names...)
	return names
}

func (v value) networks() []netip.Prefix {
	if v.emptyList() {
		v.problem("an empty list lets nobody connect", "write the networks that may connect, or leave it out to let everybody connect")
	}
	var networks []netip.Prefix
	for _, t := range v.texts(nil) {
		network, flt := parseNetwork(t.text)
		if flt != nil {
			t.at.fault(flt)
			continue
		}
		networks = append(networks, network)
	}
	return networks
}

func (v value) health(h *edge.HealthCheck) {
	m, ok := v.fields(&healthBlock)
	if !ok {
		return
	}
	m.get("interval").duration(&h.Interval, 100*time.Millisecond, 24*time.Hour, true)
	m.get("timeout").duration(&h.Timeout, 10*time.Millisecond, time.Minute, false)
	m.get("rise").int(&h.Rise, 1, 100)
	m.get("fall").int(&h.Fall, 1, 100)
}

// backends reads the backends of a frontend, in either format.
func backends(v value, b *block) []Backend {
	if v.emptyList() {
		v.problem("a frontend without backends", v.spec.remedy())
	}
	var backends []Backend
	first := map[edge.HostPort]edge.Pos{}
	for _, e := range v.list() {
		m, ok := e.fields(b)
		if !ok {
			continue
		}
		be := Backend{Weight: 1, Pos: e.pos()}
		if b.field("weight") != nil {
			m.get("weight").int(&be.Weight, 0, maxWeight)
		}
		address := m.need("address")
		s, ok := address.text()
		if !ok {
			continue
		}
		hp, flt := parseBackend(s)
		if flt != nil {
			address.fault(flt)
			continue
		}
		same := edge.HostPort{Host: canonicalHost(hp.Host), Port: hp.Port}
		if pos, ok := first[same]; ok {
			address.problem("backend "+s+" is there twice", "the other one is at "+pos.String()+"; a backend that is to get more connections gets more weight")
			continue
		}
		first[same] = address.pos()
		be.Address = hp
		backends = append(backends, be)
	}
	return backends
}

func (f *file) kubernetes(v value, pos edge.Pos) {
	k := &Kubernetes{LoadBalancerClass: DefaultClass, FollowAddresses: true, Target: edge.TargetAuto, Terms: DefaultTerms, Health: DefaultHealth, HealthzPort: DefaultHealthzPort, Pos: pos}
	f.cfg.Kubernetes = k
	m, ok := v.fields(&kubernetesBlock)
	if !ok {
		return
	}
	m.get("kubeconfig").checked(&k.Kubeconfig, checkFileName)
	m.get("loadBalancerClass").checked(&k.LoadBalancerClass, checkClass)
	m.get("classless").bool(&k.Classless)
	m.get("followAddresses").bool(&k.FollowAddresses)
	m.get("selector").checked(&k.Selector, checkSelector)
	k.DefaultZones = plain(f.zoneNames(m.get("defaultZones")))
	choice(m.get("dataPlane"), "data plane", []string{"proxy"}, []string{"nat"})
	if t, ok := choice(m.get("target"), "target", []edge.Target{edge.TargetAuto, edge.TargetAddress, edge.TargetNodePort, edge.TargetPod}, nil); ok {
		k.Target = t
	}
	m.terms(&k.Terms)
	for _, e := range m.get("allow").entries() {
		f.zoneRefs = append(f.zoneRefs, text{e.key, e.keyAt})
		m, ok := e.value.fields(&allowBlock)
		if !ok {
			continue
		}
		namespaces := m.need("namespaces").texts(func(s string) *Fault { return checkLabel("namespace", s) })
		if k.Allow == nil {
			k.Allow = map[string]Allow{}
		}
		k.Allow[e.key] = Allow{Namespaces: plain(namespaces), Pos: e.keyAt.pos()}
	}
}

func (f *file) admin(v value, pos edge.Pos) {
	f.cfg.Admin.Pos = pos
	m, ok := v.fields(&adminBlock)
	if !ok {
		return
	}
	listen := m.need("listen")
	s, ok := listen.text()
	if !ok {
		return
	}
	hp, flt := parseAdmin(s)
	if flt != nil {
		listen.fault(flt)
		return
	}
	f.cfg.Admin.Listen = s
	f.claims = append(f.claims, claim{protocol: edge.TCP, host: canonicalHost(hp.Host), port: hp.Port, text: s, at: listen})
}
