package ra

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Numbers of RFC 4861 §4 and RFC 8106 §5.
const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	optionSourceAddress = 1
	optionPrefix        = 3
	optionMTU           = 5
	optionDNS           = 25
	optionSearch        = 31

	flagManaged    = 0x80
	flagOther      = 0x40
	flagOnLink     = 0x80
	flagAutonomous = 0x40

	headerLength       = 16
	solicitationLength = 8
)

// hopLimit is told to machines for what they send, as IANA recommends, and as
// the kernel has it anyway.
const hopLimit = 64

// message is a router advertisement as it is on the wire.
type message struct {
	hopLimit         uint8
	managed, other   bool
	lifetime         time.Duration
	source           []byte // link-layer address of the router; nil: not said
	mtu              uint32 // 0: not said
	prefixes         []prefixInformation
	dns              []netip.Addr
	search           []string
	dnsLifetime      time.Duration // of both, and not 0 if there is any
	goneDNS          []netip.Addr  // not to be asked any more: of lifetime 0
	goneSearch       []string
	reachable, retry uint32 // in milliseconds; 0: not said
}

type prefixInformation struct {
	Prefix
	onLink, autonomous bool
}

// seconds are those of a lifetime, which is a field of so many bits. All bits
// set would be infinity.
func seconds(d time.Duration, most uint64) uint64 {
	if d <= 0 {
		return 0
	}
	return min(uint64(d/time.Second), most)
}

const (
	most16 = 1<<16 - 1
	most32 = 1<<32 - 2
)

// encode writes it, without the checksum, which is the kernel's work.
func (m message) encode() []byte {
	b := make([]byte, headerLength, 256)
	b[0] = typeAdvertisement
	b[4] = m.hopLimit
	if m.managed {
		b[5] |= flagManaged
	}
	if m.other {
		b[5] |= flagOther
	}
	binary.BigEndian.PutUint16(b[6:], uint16(seconds(m.lifetime, most16)))
	binary.BigEndian.PutUint32(b[8:], m.reachable)
	binary.BigEndian.PutUint32(b[12:], m.retry)
	if len(m.source) > 0 {
		b = appendOption(b, optionSourceAddress, m.source)
	}
	if m.mtu != 0 {
		b = appendOption(b, optionMTU, binary.BigEndian.AppendUint32([]byte{0, 0}, m.mtu))
	}
	for _, p := range m.prefixes {
		var flags byte
		if p.onLink {
			flags |= flagOnLink
		}
		if p.autonomous {
			flags |= flagAutonomous
		}
		o := []byte{byte(p.Prefix.Prefix.Bits()), flags}
		o = binary.BigEndian.AppendUint32(o, uint32(seconds(p.Valid, most32)))
		o = binary.BigEndian.AppendUint32(o, uint32(seconds(p.Preferred, most32)))
		o = append(o, 0, 0, 0, 0)
		addr := p.Prefix.Prefix.Masked().Addr().As16()
		b = appendOption(b, optionPrefix, append(o, addr[:]...))
	}
	b = appendServers(b, m.dns, m.dnsLifetime)
	b = appendServers(b, m.goneDNS, 0)
	b = appendSearch(b, m.search, m.dnsLifetime)
	b = appendSearch(b, m.goneSearch, 0)
	return b
}

func appendServers(b []byte, servers []netip.Addr, lifetime time.Duration) []byte {
	for len(servers) > 0 {
		n := min(len(servers), mostServers)
		o := binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(seconds(lifetime, most32)))
		for _, a := range servers[:n] {
			addr := a.As16()
			o = append(o, addr[:]...)
		}
		b = appendOption(b, optionDNS, o)
		servers = servers[n:]
	}
	return b
}

func appendSearch(b []byte, names []string, lifetime time.Duration) []byte {
	encoded := encodeNames(names)
	if len(encoded) == 0 {
		return b
	}
	o := binary.BigEndian.AppendUint32([]byte{0, 0}, uint32(seconds(lifetime, most32)))
	return appendOption(b, optionSearch, append(o, encoded...))
}

// mostServers and mostNames are what an option has room for: it has 255 times 8
// bytes, and 8 are its head.
const (
	mostServers = (255*8 - 8) / 16
	mostNames   = 255*8 - 8
)

// appendOption adds an option, filled up with zeros to a multiple of 8 bytes.
func appendOption(b []byte, kind byte, content []byte) []byte {
	length := (len(content) + 2 + 7) / 8
	b = append(b, kind, byte(length))
	b = append(b, content...)
	return append(b, make([]byte, length*8-len(content)-2)...)
}

// encodeNames are domain names as RFC 1035 §3.1 has them, without compression.
// What has no room, or is none, is left out.
func encodeNames(names []string) (b []byte) {
	for _, name := range names {
		var n []byte
		for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
			if label == "" || len(label) > 63 {
				n = nil
				break
			}
			n = append(append(n, byte(len(label))), label...)
		}
		if n = append(n, 0); len(n) > 1 && len(n) <= 255 && len(b)+len(n) <= mostNames {
			b = append(b, n...)
		}
	}
	return b
}

// decodeNames reads what encodeNames writes, up to the zeros that fill an option.
func decodeNames(b []byte) (names []string, err error) {
	for len(b) > 0 && b[0] != 0 {
		var labels []string
		for {
			if len(b) == 0 || int(b[0]) >= len(b) || b[0] > 63 {
				return nil, errors.New("a search domain is cut short")
			}
			n := int(b[0])
			label := string(b[1 : 1+n])
			b = b[1+n:]
			if n == 0 {
				break
			}
			if strings.ContainsAny(label, ".\x00") {
				return nil, errors.New("a label of a search domain has a dot or a zero in it")
			}
			labels = append(labels, label)
		}
		names = append(names, strings.Join(labels, "."))
	}
	return names, nil
}

// parse reads an advertisement from its ICMPv6 type on. Options that it does not
// know it passes over (RFC 4861 §6.1.2).
func parse(b []byte) (m message, err error) {
	if len(b) < headerLength || b[0] != typeAdvertisement || b[1] != 0 {
		return m, errors.New("not a router advertisement")
	}
	m.hopLimit, m.managed, m.other = b[4], b[5]&flagManaged != 0, b[5]&flagOther != 0
	m.lifetime = time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second
	m.reachable, m.retry = binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	err = eachOption(b[headerLength:], func(kind byte, o []byte) error {
		lifetime := func(at int) time.Duration { return time.Duration(binary.BigEndian.Uint32(o[at:])) * time.Second }
		switch kind {
		case optionSourceAddress:
			m.source = o
		case optionMTU:
			m.mtu = binary.BigEndian.Uint32(o[2:])
		case optionPrefix:
			if len(o) != 30 || o[0] > 128 {
				return errors.New("a prefix of a wrong length")
			}
			p := prefixInformation{onLink: o[1]&flagOnLink != 0, autonomous: o[1]&flagAutonomous != 0}
			p.Valid, p.Preferred = lifetime(2), lifetime(6)
			p.Prefix.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte(o[14:30])), int(o[0])).Masked()
			m.prefixes = append(m.prefixes, p)
		case optionDNS:
			if len(o)%16 != 6 || len(o) < 22 {
				return errors.New("DNS servers of a wrong length")
			}
			var all []netip.Addr
			for servers := o[6:]; len(servers) > 0; servers = servers[16:] {
				all = append(all, netip.AddrFrom16([16]byte(servers[:16])))
			}
			if lifetime(2) == 0 {
				m.goneDNS = append(m.goneDNS, all...)
			} else {
				m.dns, m.dnsLifetime = append(m.dns, all...), lifetime(2)
			}
		case optionSearch:
			names, err := decodeNames(o[6:])
			if lifetime(2) == 0 {
				m.goneSearch = append(m.goneSearch, names...)
			} else if len(names) > 0 {
				m.search, m.dnsLifetime = append(m.search, names...), lifetime(2)
			}
			return err
		}
		return nil
	})
	return m, err
}

// eachOption visits the options, without type and length: each is of at least 6
// bytes.
func eachOption(b []byte, visit func(kind byte, content []byte) error) error {
	for len(b) > 0 {
		if len(b) < 8 || b[1] == 0 || int(b[1])*8 > len(b) {
			return fmt.Errorf("an option is cut short, or of length 0: %d bytes are left", len(b))
		}
		n := int(b[1]) * 8
		if err := visit(b[0], b[2:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// checkSolicitation says what is wrong with a router solicitation (RFC 4861
// §6.1.1), of which the kernel has seen that its checksum is right.
func checkSolicitation(b []byte, from netip.Addr, hops int) error {
	switch {
	case len(b) < solicitationLength || b[0] != typeSolicitation || b[1] != 0:
		return errors.New("not a router solicitation")
	case hops != 255:
		return fmt.Errorf("it comes from elsewhere: hop limit %d", hops)
	}
	return eachOption(b[solicitationLength:], func(kind byte, _ []byte) error {
		if kind == optionSourceAddress && from.IsUnspecified() {
			return errors.New("a link-layer address of nobody")
		}
		return nil
	})
}
