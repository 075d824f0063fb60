package nat

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// names are those of what there is of one kind of doors, and how one is told from
// another there. The zero names are of doors at whatever address; others of doors
// that have an address, of an IP version. What is of the ones is not seen by the
// packets of the others: each has chains, maps and sets of its own.
type names struct{ version int }

var wildcard names

func addressed(version int) names { return names{version} }

// namesOf are those of the kind of a door.
func namesOf(d edge.Door) names {
	if !d.Listen.Addr.IsValid() {
		return wildcard
	}
	return addressed(versionOf(d.Listen.Addr))
}

const addressPrefix = "address-"

type version struct {
	number int
	word   string // of nft
	bytes  int    // of an address
}

// versions are those of the clients of these doors.
func (n names) versions() []version {
	if n.version == 0 {
		return versions
	}
	return []version{versionNumber(n.version)}
}

func versionNumber(number int) version {
	if number == 4 {
		return versions[0]
	}
	return versions[1]
}

func wordOfVersion(number int) string { return versionNumber(number).word }

// name is a chain's: "dstnat", "address-dstnat6".
func (n names) name(what string) string {
	if n.version == 0 {
		return what
	}
	return addressPrefix + what + strconv.Itoa(n.version)
}

// set names one that is of all protocols, and of doors at whatever address of an
// IP version, or of both (0): "frontends", "doors4", "address-doors4".
func (n names) set(what string, version int) string {
	if n.version == 0 && version != 0 {
		return what + strconv.Itoa(version)
	}
	return n.name(what)
}

// of names what is of one protocol and IP version: "tcp4-backends",
// "tcp4-address-backends".
func (n names) of(protocol string, version int, what string) string {
	if n.version != 0 {
		what = addressPrefix + what
	}
	return fmt.Sprintf("%s%d-%s", protocol, version, what)
}

func (n names) connectionChain(protocol string) string {
	if n.version == 0 {
		return protocol + "-connection"
	}
	return n.of(protocol, n.version, "connection")
}

// The kinds of chains that are made when they are needed.
const (
	random      = "random"
	source      = "source"
	affine      = "affinity"
	remembering = "remember"
)

// chain names one that chooses among slots.
func (n names) chain(protocol string, version int, kind string, slots int) string {
	return n.of(protocol, version, fmt.Sprintf("%s-%d", kind, slots))
}

// rememberChain is the name of the chain that remembers clients for a time.
func (n names) rememberChain(protocol string, timeout time.Duration) string {
	text := fmt.Sprintf("%dms", max(timeout/time.Millisecond, 1))
	if timeout%time.Second == 0 {
		text = fmt.Sprintf("%ds", timeout/time.Second)
	}
	if n.version == 0 {
		return protocol + "-" + remembering + "-" + text
	}
	return n.of(protocol, n.version, remembering+"-"+text)
}

var madeWhenNeeded = regexp.MustCompile(`^(?:` +
	`(?P<protocol>tcp|udp|sctp)(?P<version>[46])-(?P<address>address-)?(?P<kind>random|source|affinity)-(?P<slots>[1-9][0-9]*)` +
	`|(?P<protocol>tcp|udp|sctp)(?:(?P<version>[46])-(?P<address>address))?-(?P<kind>remember)-(?P<time>[1-9][0-9]*m?s)` +
	`)$`)

// made is a chain that is made when it is needed, as its name says.
type made struct {
	names
	protocol string
	version  int // 0: both
	kind     string
	argument string // slots, or a time
}

func parseChain(name string) (c made, ok bool) {
	m := madeWhenNeeded.FindStringSubmatch(name)
	if m == nil {
		return made{}, false
	}
	for i, group := range madeWhenNeeded.SubexpNames() {
		switch text := m[i]; {
		case text == "":
		case group == "protocol":
			c.protocol = text
		case group == "version":
			c.version = int(text[0] - '0')
		case group == "address":
			c.names = addressed(c.version)
		case group == "kind":
			c.kind = text
		case group != "":
			c.argument = text
		}
	}
	return c, true
}

// next is the chain that another goes to; empty: none.
func next(chain string) string {
	if before, after, ok := strings.Cut(chain, "-"+affine+"-"); ok {
		return before + "-" + source + "-" + after
	}
	return ""
}

// doorType is the type of a key that is a door.
func (n names) doorType() string {
	if n.version == 0 {
		return "ifname . inet_proto . inet_service"
	}
	return fmt.Sprintf("ifname . ipv%d_addr . inet_proto . inet_service", n.version)
}

// door is that of a packet that has just come in.
func (n names) door() string {
	if n.version == 0 {
		return "iifname . meta l4proto . th dport"
	}
	return fmt.Sprintf("iifname . %s daddr . meta l4proto . th dport", wordOfVersion(n.version))
}

// doorCT is the door of a connection.
func (n names) doorCT() string {
	if n.version == 0 {
		return "iifname . meta l4proto . ct original proto-dst"
	}
	return fmt.Sprintf("iifname . ct original %s daddr . meta l4proto . ct original proto-dst", wordOfVersion(n.version))
}

// portCT is the door of a connection, but for the interface and the protocol.
func (n names) portCT() string {
	if n.version == 0 {
		return "ct original proto-dst"
	}
	return fmt.Sprintf("ct original %s daddr . ct original proto-dst", wordOfVersion(n.version))
}

// countedType is the type of the key of what is counted.
func (n names) countedType(version int) string {
	backend := fmt.Sprintf("ipv%d_addr . inet_service", version)
	if n.version == 0 {
		return "iface_index . inet_service . " + backend
	}
	return fmt.Sprintf("iface_index . ipv%d_addr . inet_service . %s", n.version, backend)
}

// All of a /64 is one client: the rest of its address it makes up.
const client6 = "@nh,64,64"

func clientOf(version int) string {
	if version == 4 {
		return "ip saddr"
	}
	return client6
}

// Registers are 64 bytes, in which nft 1.0.6 has room for the key of a slot and
// what it looks up beside it; not with the name of an interface (16 bytes) and an
// address of IPv6. There the name's hash stands for it.
const deviceHash = "jhash iifname mod 4294967295 seed"

// slots is what finds the slots of a packet's door.
func (n names) slots(protocol string) string {
	switch n.version {
	case 4:
		return fmt.Sprintf("iifname . ip daddr . %s dport", protocol)
	case 6:
		return fmt.Sprintf("%s %#x . ip6 daddr . %s dport", deviceHash, hashSeed, protocol)
	default:
		return fmt.Sprintf("iifname . %s dport", protocol)
	}
}

// slotsType is its type. Any number has that of numgen.
func (n names) slotsType(protocol string) string {
	if n.version == 6 {
		return fmt.Sprintf("numgen random mod 2 . ip6 daddr . %s dport", protocol)
	}
	return n.slots(protocol)
}

// client is what finds the backend that the client of a packet had last. Its key
// is 16 bytes: of IPv6 the hash of the address stands for it, which is another
// for each that remembers (see plan), and the interface is left out.
func (n names) client(protocol string, version int) string {
	return n.clientAt("ip daddr", "ip6 daddr", protocol+" dport", version)
}

// clientCT is the same of a connection that is on its way out.
func (n names) clientCT(version int) string {
	return n.clientAt("ct original ip daddr", "ct original ip6 daddr", "ct original proto-dst", version)
}

func (n names) clientAt(to4, to6, port string, version int) string {
	switch n.version {
	case 4:
		return fmt.Sprintf("iif . %s . %s . ip saddr", to4, port)
	case 6:
		return fmt.Sprintf("jhash %s mod 4294967295 seed %#x . %s . %s", to6, hashSeed, port, client6)
	default:
		return fmt.Sprintf("iif . %s . %s", port, clientOf(version))
	}
}

// clientType is its type.
func (n names) clientType(protocol string, version int) string {
	if n.version == 6 {
		return fmt.Sprintf("numgen random mod 2 . %s dport . %s", protocol, client6)
	}
	return n.client(protocol, version)
}

// lane is what is counted apart from the rest: a direction of a protocol and an
// IP version.
type lane struct {
	reply    bool
	version  int
	protocol string
}

func lanes() []lane {
	var all []lane
	for _, p := range protocols {
		for _, v := range versions {
			all = append(all, lane{false, v.number, p.word}, lane{true, v.number, p.word})
		}
	}
	return all
}

// chain is the one that counts, of doors at whatever address; or of both.
func (way lane) chain(n names) string {
	if way.reply {
		return n.of(way.protocol, way.version, toClients)
	}
	return n.of(way.protocol, way.version, toBackends)
}

// key is that of nft.
func (way lane) key() []string {
	direction := "original"
	if way.reply {
		direction = "reply"
	}
	return []string{direction, "ipv" + strconv.Itoa(way.version), way.protocol}
}

// countingChains says where each lane is counted, while there are these
// addresses.
func countingChains(addresses map[netip.Addr]bool) map[lane]string {
	has := map[int]bool{}
	for a := range addresses {
		has[versionOf(a)] = true
	}
	chains := map[lane]string{}
	for _, way := range lanes() {
		n := wildcard
		if has[way.version] {
			n = addressed(way.version)
		}
		chains[way] = way.chain(n)
	}
	return chains
}
