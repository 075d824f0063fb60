package relay

// Temporary: delete this file when udp.go is there.

import (
	"errors"
	"net/netip"

	"e13.dev/gatehouse/internal/edge"
)

type udpSocket struct{}

func newUDPSocket(*Relay, *door, int) *udpSocket  { return &udpSocket{} }
func (*udpSocket) start(*loop) error              { return nil }
func (*udpSocket) shut(*loop)                     {}
func (*udpSocket) pause(*loop)                    {}
func (*udpSocket) unpause(*loop)                  {}
func (*udpSocket) sessions(*loop) []HandedSession { return nil }
func (*udpSocket) adopt(*loop, HandedSession)     {}
func (*udpSocket) drained(*loop, netip.AddrPort)  {}

func listenUDP(edge.Listen, *machine, int) ([]int, netip.AddrPort, error) {
	return nil, netip.AddrPort{}, errors.New("the relay does not speak UDP")
}
