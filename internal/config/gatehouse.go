package config

import (
	"net/netip"
	"slices"
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
	for _, v := range top.get("links").list() {
		f.link(v)
	}
	for _, v := range top.get("pools").list() {
		f.pool(v)
	}
	for _, v := range top.get("frontends").list() {
		f.frontend(v)
	}
	if key, ok := f.once(top, "kubernetes"); ok {
		f.kubernetes(top.get("kubernetes"), key.pos())
	}
	if _, ok := f.once(top, "dhcp"); ok {
		f.dhcp(top.get("dhcp"))
	}
	if key, ok := f.once(top, "dns"); ok {
		f.dns(top.get("dns"), key.pos())
	}
	if _, ok := f.once(top, "stopTimeout"); ok {
		top.get("stopTimeout").duration(&f.cfg.StopTimeout, ShortestTimeout, 24*time.Hour, true)
	}
	if _, ok := f.once(top, "stateDir"); ok {
		top.get("stateDir").checked(&f.cfg.StateDir, checkDirectory)
	}
	if key, ok := f.once(top, "admin"); ok {
		f.admin(top.get("admin"), key.pos())
	}
	if key, ok := f.once(top, "firewall"); ok {
		f.firewall(top.get("firewall"), key.pos())
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
		if e.key == Self || e.key == AnyZone {
			f.wordZones = append(f.wordZones, e.keyAt)
		}
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
	fe := Frontend{Pos: v.pos(), DataPlane: edge.DataPlaneProxy, Health: DefaultHealth, Protocol: edge.TCP, Terms: DefaultTerms}
	m.get("name").checked(&fe.Name, checkFrontendName)
	if p, ok := choice(m.get("protocol"), "protocol", []edge.Protocol{edge.TCP, edge.UDP, edge.SCTP}); ok {
		fe.Protocol = p
	}
	names := m.get("hostnames").hostnames()
	fe.Hostnames = plain(names)
	slices.Sort(fe.Hostnames)
	zones := f.opened(v, m, &fe)
	fe.SourceRanges = m.get("sourceRanges").networks(nobodyConnects)
	fe.AcceptProxyProtocol = m.acceptProxyProtocol()
	m.terms(&fe.Terms)
	m.get("affinityTimeout").duration(&fe.AffinityTimeout, time.Second, 24*time.Hour, true)
	m.get("health").health(&fe.Health, &fe.Terms, &healthBlock)
	m.dataPlane(&fe.DataPlane, &fe.Terms)
	m.contradictions(&fe)
	fe.Backends = backends(m.need("backends"), &backendBlock, fe.Listen, fe.DataPlane)
	if zones == nil || fe.Listen == nil { // both is a problem of its own
		f.claim(&fe, m.get("listen"), zones, m.sharing(names, fe.AcceptProxyProtocol))
	}
	f.add(fe, names, v, m.get("name"))
}

// contradictions are what is right by itself, and not together.
func (m fields) contradictions(fe *Frontend) {
	if affinity, balance := m.get("affinityTimeout"), m.get("balance"); fe.AffinityTimeout > 0 && (balance.absent() || balance.says(string(fe.Balance))) && fe.Balance != edge.BalanceSource {
		affinity.problem("clients keep their backend only with balance: source", "write balance: source, or remove affinityTimeout")
	}
	if l := fe.Listen; fe.Transparent && l != nil && l.isLoopback() && m.get("acceptProxyProtocol").absent() {
		m.keys["transparent"].problem("whoever connects to "+l.String()+" is on this machine, and has no address that a backend could answer", "remove transparent, or listen where clients come from")
	}
	if fe.DataPlane == edge.DataPlaneNAT {
		m.ofKernel(fe)
	} else {
		m.ofRelay(fe)
	}
	if health := m.get("health"); fe.Protocol != edge.TCP {
		switch {
		case health.absent():
			fe.Health = edge.HealthCheck{}
		case fe.Health.Interval > 0 || health.hasOtherThan("interval", "timeout", "rise", "fall"):
			m.keys["health"].problem(string(fe.Protocol)+" backends are not probed: a connection to them says nothing", "remove health; backends count as up")
		}
	}
}

// ofRelay are those of a frontend that is relayed.
func (m fields) ofRelay(fe *Frontend) {
	switch {
	case fe.Protocol == edge.SCTP && !m.get("dataPlane").absent() && !m.get("dataPlane").says("proxy"): // has a problem of its own
	case fe.Protocol == edge.SCTP:
		m.get("protocol").problem("protocol SCTP is not relayed: only the kernel moves it", "write dataPlane: nat, or protocol: TCP or UDP")
	}
	if key, ok := m.keys["masquerade"]; ok && fe.Masquerade {
		key.problem("what is relayed comes from this machine anyway", "write dataPlane: nat, or remove masquerade")
	}
	if fe.Protocol == edge.UDP {
		m.udp(fe)
	}
}

// ofKernel are those of a frontend whose packets the kernel rewrites.
func (m fields) ofKernel(fe *Frontend) {
	v := m.get("dataPlane")
	if l := fe.Listen; l != nil && l.Device == "" {
		v.problem("data plane nat knows clients by the interface that they come in on, and listen names none",
			`write zones and port, or an interface such as listen: "@eth1:`+strconv.Itoa(int(l.Port))+`", or dataPlane: proxy; listen is at `+l.Pos.String())
	}
	if l := fe.Listen; l != nil && l.Device == "lo" {
		v.problem("data plane nat does not see what this machine itself sends", "write dataPlane: proxy, or listen where clients come from; listen is at "+l.Pos.String())
	}
	if idle := m.get("idleTimeout"); fe.Protocol != edge.TCP && !idle.absent() && idle.isZero() {
		idle.problem(string(fe.Protocol)+" sessions would never end", "remove idleTimeout; the kernel has times of its own")
	}
}

// terms reads what connections are held to.
func (m fields) terms(t *edge.Terms) {
	parsed(m.get("balance"), &t.Balance, ParseBalance)
	parsed(m.get("sendProxyProtocol"), &t.SendProxyProtocol, ParseProxyProtocol)
	m.get("transparent").bool(&t.Transparent)
	parsed(m.get("maxRatePerClient"), &t.MaxRatePerClient, ParseRate)
	m.get("banTime").duration(&t.BanTime, time.Second, LongestTimeout, true)
	if t.BanTime > 0 && m.get("maxRatePerClient").absent() {
		m.get("banTime").problem("nobody is turned away without a rate", "write maxRatePerClient: 100/10s, or the rate wanted, or remove banTime")
	}
	if t.Transparent && t.SendProxyProtocol != edge.ProxyProtocolNone {
		m.keys["transparent"].problem("backends see the client's address, or are told it by sendProxyProtocol: not both", "sendProxyProtocol is at "+m.keys["sendProxyProtocol"].pos().String()+"; remove one of them")
	}
	m.get("connectTimeout").duration(&t.ConnectTimeout, 10*time.Millisecond, 2*time.Minute, false)
	m.get("idleTimeout").duration(&t.IdleTimeout, ShortestTimeout, LongestTimeout, true)
	m.get("drainTimeout").duration(&t.DrainTimeout, ShortestTimeout, LongestTimeout, true)
	m.get("maxConnections").int(&t.MaxConnections, 0, maxConnections)
	m.get("maxConnectionsPerClient").int(&t.MaxConnectionsPerClient, 0, maxConnections)
}

// dataPlane reads what moves the bytes. What the kernel cannot keep is refused
// with it, and returned otherwise: it is a Service's reason to stay closed that
// asks for the kernel.
func (m fields) dataPlane(p *edge.DataPlane, t *edge.Terms) []Setting {
	if w, ok := choice(m.get("masquerade"), "choice", []string{"auto", "always"}); ok {
		t.Masquerade = w == "always"
	}
	v := m.get("dataPlane")
	parsed(v, p, ParseDataPlane)
	var said []Setting
	for _, relayed := range []struct {
		key  string
		asks bool
		why  string
	}{
		{"hostnames", true, "cannot see names: they are in the TLS hello, which only a relay reads"},
		{"acceptProxyProtocol", true, "cannot take the PROXY protocol header off a connection"},
		{"sendProxyProtocol", t.SendProxyProtocol != edge.ProxyProtocolNone, "cannot put a PROXY protocol header in front of a connection"},
		{"transparent", t.Transparent, "relays nothing, transparent or not"},
		{"balance", t.Balance == edge.BalanceLeastConnections, "does not compare how many connections backends have"},
		{"maxConnections", t.MaxConnections > 0, "does not count connections against a limit"},
		{"maxConnectionsPerClient", t.MaxConnectionsPerClient > 0, "does not count connections of a client against a limit"},
		{"maxRatePerClient", t.MaxRatePerClient != edge.Rate{}, "does not count how fast a client comes"},
		{"connectTimeout", true, "does not wait for backends: clients do"},
		{"idleTimeout", t.IdleTimeout > 0, "has the idle timeouts of the kernel: the sysctls net.netfilter.nf_conntrack_*_timeout*"},
	} {
		key, ok := m.keys[relayed.key]
		if !ok || !relayed.asks {
			continue
		}
		said = append(said, Setting{Key: relayed.key, Why: relayed.why, Pos: key.pos()})
		if v.says(string(edge.DataPlaneNAT)) {
			v.problem("data plane nat "+relayed.why, "write dataPlane: proxy, or remove "+relayed.key+", which is at "+key.pos().String())
		}
	}
	return said
}

// udp is what differs for a frontend that has no connections to watch: only
// silence ends a session, and a connection tells nothing of a backend.
func (m fields) udp(fe *Frontend) {
	idle := m.get("idleTimeout")
	if key, ok := m.keys["connectTimeout"]; ok {
		key.problem("nothing is waited for before a UDP backend is sent to", "remove connectTimeout")
	}
	if key, ok := m.keys["acceptProxyProtocol"]; ok {
		key.problem("the PROXY protocol is for TCP: its header comes before the first byte of a connection", "remove acceptProxyProtocol")
	}
	if fe.SendProxyProtocol != edge.ProxyProtocolNone {
		m.keys["sendProxyProtocol"].problem("the PROXY protocol is for TCP: its header comes before the first byte of a connection", "remove sendProxyProtocol")
	}
	switch {
	case idle.absent():
		fe.IdleTimeout = DefaultUDPIdleTimeout
	case fe.IdleTimeout == 0 && idle.isZero():
		idle.problem("UDP sessions would never end", "write idleTimeout: 30s, or the time wanted")
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
func (f *file) add(fe Frontend, hostnames []text, v, name value) {
	made := name.absent()
	if made {
		fe.Name = madeName(&fe, hostnames)
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
func madeName(fe *Frontend, hostnames []text) string {
	suffix := ""
	if fe.Protocol != edge.TCP {
		suffix = "/" + string(fe.Protocol) // the same port can be opened for TCP too
	}
	if len(hostnames) > 0 {
		suffix += "/" + hostnames[0].text // nobody else has it there
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

// hostnames reads the TLS server names of a frontend, in the order written.
func (v value) hostnames() []text {
	if v.emptyList() {
		v.problem("an empty list takes no name", `write the names, or ["*"] for whatever else comes, or leave it out for the whole port`)
	}
	names := v.parsedTexts(ParseHostname)
	if len(names) > MaxHostnames {
		v.fault(tooManyHostnames(len(names)))
	}
	return names
}

var nobodyConnects = Fault{"an empty list lets nobody connect", "write the networks that may connect, or leave it out to let everybody connect"}

// acceptProxyProtocol reads networks, sorted: those of all frontends that share
// a port are compared.
func (m fields) acceptProxyProtocol() []netip.Prefix {
	networks := m.get("acceptProxyProtocol").networks(Fault{"an empty list accepts the header of nobody", "write the networks of the proxies in front of this machine, or leave it out"})
	slices.SortFunc(networks, netip.Prefix.Compare)
	return networks
}

func (v value) networks(empty Fault) []netip.Prefix {
	if v.emptyList() {
		v.fault(&empty)
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

// health reads how backends are checked, and what follows for connections.
func (v value) health(h *edge.HealthCheck, t *edge.Terms, b *block) {
	m, ok := v.fields(b)
	if !ok {
		return
	}
	parsed(m.get("type"), &h.Type, parseCheckType)
	if isHTTP(h.Type) {
		defaultsOfHTTP(h)
	}
	m.get("interval").duration(&h.Interval, 100*time.Millisecond, 24*time.Hour, true)
	m.get("timeout").duration(&h.Timeout, 10*time.Millisecond, time.Minute, false)
	m.get("rise").int(&h.Rise, 1, 100)
	m.get("fall").int(&h.Fall, 1, 100)
	var port int
	if m.get("port").int(&port, 1, 65535) {
		h.Port = uint16(port)
	}
	m.get("path").checked(&h.Path, checkHealthPath)
	parsed(m.get("host"), &h.Host, parseHealthHost)
	m.get("status").statuses(h)
	m.get("send").checked(&h.Send, checkSend)
	m.get("expect").checked(&h.Expect, checkExpect)
	if w, ok := choice(m.get("whenAllDown"), "choice", []string{"try", "refuse"}); ok {
		t.RefuseWhenDown = w == "refuse"
	}
	if w, ok := choice(m.get("onDown"), "choice", []string{"keep", "close"}); ok {
		t.CloseWhenDown = w == "close"
	}
	if typ := m.get("type"); typ.absent() || typ.says(string(h.Type)) {
		m.checkHealthFields(h.Type)
	}
}

// checkHealthFields refuses what a check of this type has no use for.
func (m fields) checkHealthFields(t edge.CheckType) {
	for _, of := range []struct {
		keys  []string
		types []edge.CheckType
		text  string
	}{
		{[]string{"path", "status"}, []edge.CheckType{edge.CheckHTTP, edge.CheckHTTPS}, "http or https"},
		{[]string{"host"}, []edge.CheckType{edge.CheckHTTP, edge.CheckHTTPS, edge.CheckTLS}, "http, https or tls"},
		{[]string{"send", "expect"}, []edge.CheckType{edge.CheckExchange}, "exchange"},
	} {
		for _, key := range of.keys {
			if k, ok := m.keys[key]; ok && !slices.Contains(of.types, t) {
				k.problem("a check of type "+string(t)+" has no use for it", "write type: "+of.text+", or remove "+key)
			}
		}
	}
	if t == edge.CheckExchange {
		m.need("expect")
	}
}

// statuses reads a range, or one, which is a number to YAML.
func (v value) statuses(h *edge.HealthCheck) {
	if v.absent() {
		return
	}
	s := v.node.Value
	if v.node.Kind != yaml.ScalarNode || v.node.Tag != "!!int" {
		var ok bool
		if s, ok = v.text(); !ok {
			return
		}
	}
	lo, hi, f := parseStatus(s)
	if f != nil {
		v.fault(f)
		return
	}
	h.StatusMin, h.StatusMax = lo, hi
}

// hasOtherThan says whether a map has other keys.
func (v value) hasOtherThan(keys ...string) bool {
	for i := 0; i < len(v.node.Content); i += 2 {
		if !slices.Contains(keys, v.node.Content[i].Value) {
			return true
		}
	}
	return false
}

// backends reads the backends of a frontend, in either format. None may be where
// it listens itself, or for the kernel where packets from outside cannot go.
func backends(v value, b *block, listen *Listen, plane edge.DataPlane) []Backend {
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
		if listen != nil && listen.hears(hp) {
			address.problem("connections to "+s+" come back to this frontend, which listens at "+listen.String()+", in an endless loop", "write where the server behind it listens")
			continue
		}
		same := edge.HostPort{Host: canonicalHost(hp.Host), Port: hp.Port}
		if a, err := netip.ParseAddr(same.Host); plane == edge.DataPlaneNAT && err == nil && a.Unmap().IsLoopback() {
			address.problem("data plane nat sends clients' packets on, and the kernel drops those that are for a loopback address", "write another address of this machine where the server listens, or dataPlane: proxy")
			continue
		}
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
	k := &Kubernetes{LoadBalancerClass: DefaultClass, FollowAddresses: true, Target: edge.TargetAuto, DataPlane: edge.DataPlaneProxy, PodRoutes: true, Terms: DefaultTerms, Health: DefaultHealth, HealthzPort: DefaultHealthzPort, Finalizer: true, HoldLosses: DefaultHoldLosses, Pos: pos}
	f.cfg.Kubernetes = k
	m, ok := v.fields(&kubernetesBlock)
	if !ok {
		return
	}
	k.Keys = make(map[string]edge.Pos, len(m.keys))
	for key, at := range m.keys {
		k.Keys[key] = at.pos()
	}
	m.get("kubeconfig").checked(&k.Kubeconfig, checkFileName)
	m.get("loadBalancerClass").checked(&k.LoadBalancerClass, checkClass)
	m.get("classless").bool(&k.Classless)
	m.get("followAddresses").bool(&k.FollowAddresses)
	m.get("selector").checked(&k.Selector, checkSelector)
	k.DefaultZones = plain(f.zoneNames(m.get("defaultZones")))
	if t, ok := choice(m.get("target"), "target", []edge.Target{edge.TargetAuto, edge.TargetAddress, edge.TargetNodePort, edge.TargetPod}); ok {
		k.Target = t
	}
	m.terms(&k.Terms)
	k.AcceptProxyProtocol = m.acceptProxyProtocol()
	k.OfRelay = m.dataPlane(&k.DataPlane, &k.Terms)
	m.get("podRoutes").bool(&k.PodRoutes)
	m.get("health").health(&k.Health, &k.Terms, &kubernetesHealthBlock)
	var port int
	if m.get("healthzPort").int(&port, 0, 65535) {
		k.HealthzPort = uint16(port)
	}
	for _, e := range m.get("allow").entries() {
		f.zoneRefs = append(f.zoneRefs, text{e.key, e.keyAt})
		m, ok := e.value.fields(&allowBlock)
		if !ok {
			continue
		}
		if len(m.keys) == 0 {
			e.value.problem("says nobody, and not everybody either", "write namespaces: [NAME], namespaceLabels or labels, or remove "+e.key+" from allow")
			continue
		}
		if k.Allow == nil {
			k.Allow = map[string]Allow{}
		}
		allow := Allow{Pos: e.keyAt.pos()}
		m.who(&allow.Who)
		k.Allow[e.key] = allow
	}
	m.get("ignoreExcludeLabel").bool(&k.IgnoreExcludeLabel)
	m.get("finalizer").bool(&k.Finalizer)
	m.get("holdLosses").duration(&k.HoldLosses, time.Second, 24*time.Hour, true)
	if key, ok := m.keys["apiServer"]; ok {
		k.APIServer = f.apiServer(m.get("apiServer"), key.pos())
	}
}
