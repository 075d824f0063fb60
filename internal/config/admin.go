package config

import (
	"net/netip"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// DefaultAdminPort is where gatehouse tells about itself in zones.
const DefaultAdminPort = 9180

// MinTokenLength is how many characters a token has to have: 16 of 64 kinds are
// 96 bits, which nobody guesses over a network.
const MinTokenLength = 16

// OnLoopback says whether only this machine can connect to Listen. Whoever does
// so elsewhere is asked for the token.
func (a Admin) OnLoopback() bool {
	hp, f := parseAdmin(a.Listen)
	if f != nil {
		return false
	}
	addr, err := netip.ParseAddr(canonicalHost(hp.Host))
	return err == nil && addr.IsLoopback()
}

// ListenAddr is Listen, read; false if there is none.
func (a Admin) ListenAddr() (netip.AddrPort, bool) {
	hp, f := parseAdmin(a.Listen)
	if f != nil {
		return netip.AddrPort{}, false
	}
	addr, err := netip.ParseAddr(strings.Replace(strings.ToLower(hp.Host), "localhost", "127.0.0.1", 1))
	return netip.AddrPortFrom(addr, hp.Port), err == nil
}

// admin reads where gatehouse tells about itself, and to whom.
func (f *file) admin(v value, pos edge.Pos) {
	a := &f.cfg.Admin
	*a = Admin{Port: DefaultAdminPort, Pos: pos}
	m, ok := v.fields(&adminBlock)
	if !ok {
		return
	}
	listen, socket, zones, token := m.get("listen"), m.get("socket"), m.get("zones"), m.get("tokenFile")
	if listen.absent() && socket.absent() && zones.absent() {
		v.problem("is served nowhere", `write listen: "127.0.0.1:9180", socket: /run/gatehouse/api.sock or zones: [NAME], or remove admin`)
		return
	}
	socket.checked(&a.Socket, checkSocket)
	token.checked(&a.TokenFile, checkFileName)
	asked := m.adminListen(f, listen)
	if zones.emptyList() {
		zones.problem("an empty list is no zone", "write zones: [NAME], or remove it")
	}
	names := f.zoneNames(zones)
	a.Zones = plain(names)
	var port int
	if m.get("port").int(&port, 1, 65535) {
		a.Port = uint16(port)
	}
	if key, ok := m.keys["port"]; ok && zones.absent() {
		key.problem("is the port in zones, and there are none", "write zones: [NAME], or remove port; that of listen is in listen")
	}
	f.claim(&Frontend{Protocol: edge.TCP, Port: a.Port}, value{}, names, sharing{})
	if !zones.absent() {
		asked = append(asked, zones)
	}
	switch {
	case token.absent() && len(asked) > 0:
		asked[0].problem("others than this machine's users can connect there, and there is no token that they have to show",
			"write tokenFile: /etc/gatehouse/token, the name of a file with "+strconv.Itoa(MinTokenLength)+" characters or more")
	case !token.absent() && len(asked) == 0:
		m.keys["tokenFile"].problem("nobody is asked for a token at a loopback address or at a socket", "remove tokenFile, or write zones: [NAME]")
	}
}

// adminListen reads where it listens besides zones. It returns that if others
// than this machine can connect.
func (m fields) adminListen(f *file, listen value) (asked []value) {
	s, ok := listen.text()
	if !ok {
		return nil
	}
	hp, flt := parseAdmin(s)
	if flt != nil {
		listen.fault(flt)
		return nil
	}
	f.cfg.Admin.Listen = s
	c := claim{protocol: edge.TCP, host: canonicalHost(hp.Host), port: hp.Port, text: s, at: listen}
	if f.cfg.Admin.OnLoopback() {
		c.device = "lo" // it is bound to that, and in the way of no zone
	} else {
		asked = append(asked, listen)
	}
	f.claims = append(f.claims, c)
	return asked
}

// maxSocketName is how long the kernel lets the name of a socket be (unix(7),
// sun_path), with the zero at its end.
const maxSocketName = 108

// checkSocket wants a name that means the same wherever gatehouse is started,
// and that the kernel takes.
func checkSocket(s string) *Fault {
	const such = "such as /run/gatehouse/api.sock"
	switch {
	case !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsRune(s, 0):
		return &Fault{quote(s) + " is not the full name of a socket", "write one that begins with /, " + such}
	case len(s) >= maxSocketName:
		return &Fault{quote(s) + " is too long for a socket", "write a name of up to " + strconv.Itoa(maxSocketName-1) + " bytes, " + such}
	}
	return nil
}
