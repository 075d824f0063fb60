// Package dhcp6 answers stateless DHCPv6 (RFC 8415 §18.3.6): a machine that has
// made its addresses itself asks what else there is to know. Addresses are given
// to nobody.
//
//	s := dhcp6.New(log, dhcp6.Options{})
//	s.Apply(ctx, map[string]dhcp6.Link{"eth0": {Index: 2, Content: dhcp6.Content{DNS: ...}}})
//	...
//	s.Stop()
//
// It owns one UDP socket at port 547 for each interface. answer.go says what is
// answered, without a socket or a clock.
package dhcp6

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// Content is what is told to the machines of one interface.
type Content struct {
	DNS    []netip.Addr
	Search []string // without dots at their ends
	NTP    []netip.Addr
}

// Empty says whether there is nothing to tell.
func (c Content) Empty() bool { return len(c.DNS) == 0 && len(c.Search) == 0 && len(c.NTP) == 0 }

// refresh is after which time machines ask again (RFC 8415 §21.23): as soon as
// they may (IRT_MINIMUM), since this machine's addresses may be others by then.
const refresh = 600 * time.Second

// errNotAsked is a message that is somebody else's to answer, or nobody's.
var errNotAsked = errors.New("not an information request")

// answer is the reply to a message of a neighbour. The error says why there is
// none: what RFC 8415 §16.12 has servers discard.
func answer(packet []byte, mac net.HardwareAddr, c Content) ([]byte, error) {
	// The type first: there is no need to read what is not for us.
	if len(packet) < dhcpv6.MessageHeaderSize || packet[0] != byte(dhcpv6.MessageTypeInformationRequest) {
		return nil, errNotAsked
	}
	m, err := dhcpv6.MessageFromBytes(packet)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	for _, address := range []dhcpv6.OptionCode{dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD} {
		if m.GetOneOption(address) != nil {
			return nil, errors.New("it asks for an address")
		}
	}
	self := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac})
	if to := m.GetOneOption(dhcpv6.OptionServerID); to != nil && !slices.Equal(to.ToBytes(), self.ToBytes()) {
		return nil, errors.New("it is for another server")
	}
	reply := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	reply.AddOption(self)
	if client := m.GetOneOption(dhcpv6.OptionClientID); client != nil {
		reply.AddOption(client)
	}
	asked := func(code dhcpv6.OptionCode) bool {
		return m.GetOneOption(dhcpv6.OptionORO) == nil || m.IsOptionRequested(code)
	}
	if asked(dhcpv6.OptionDNSRecursiveNameServer) && len(c.DNS) > 0 {
		reply.AddOption(dhcpv6.OptDNS(ips(c.DNS)...))
	}
	if asked(dhcpv6.OptionDomainSearchList) && len(c.Search) > 0 {
		dhcpv6.WithDomainSearchList(c.Search...)(reply)
	}
	if asked(dhcpv6.OptionNTPServer) && len(c.NTP) > 0 {
		o := &dhcpv6.OptNTPServer{}
		for _, ip := range ips(c.NTP) {
			server := dhcpv6.NTPSuboptionSrvAddr(ip)
			o.Suboptions.Add(&server)
		}
		reply.AddOption(o)
	}
	if asked(dhcpv6.OptionSNTPServerList) && len(c.NTP) > 0 { // RFC 4075, of older clients
		var list []byte
		for _, ip := range ips(c.NTP) {
			list = append(list, ip...)
		}
		reply.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionSNTPServerList, OptionData: list})
	}
	// Also to those who forget to ask for it.
	reply.AddOption(dhcpv6.OptInformationRefreshTime(refresh))
	return reply.ToBytes(), nil
}

// ips are those of IPv6.
func ips(addrs []netip.Addr) []net.IP {
	var all []net.IP
	for _, a := range addrs {
		if a.Is6() && !a.Is4In6() {
			all = append(all, a.AsSlice())
		}
	}
	return all
}
