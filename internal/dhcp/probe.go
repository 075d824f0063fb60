package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime is how long somebody who has an address may take to say so. It is as
// long as RFC 5227 has a machine wait between two of its own probes, at least, and
// less than any client waits for an offer.
const probeTime = 500 * time.Millisecond

// prober finds out whether somebody has an address, many at a time.
type prober struct {
	mu      sync.Mutex
	pending map[netip.Addr]*pending
	sockets map[string]*os.File // that hear ARP, by interface
	icmp    *net.IPConn         // nil: it is not open
}

// pending is an address that is looked at.
type pending struct {
	timer *time.Timer
	mac   string // of the client, which may have it already
	done  func(somebody string)
}

func newProber() *prober {
	return &prober{pending: map[netip.Addr]*pending{}, sockets: map[string]*os.File{}}
}

// look calls done once it is known who has an address; empty: nobody has said so.
// Who is looked for already is not looked for twice, and done is not called.
func (p *prober) look(a netip.Addr, by *port, relayed bool, mac string, done func(somebody string)) error {
	p.mu.Lock()
	if p.pending[a] != nil {
		p.mu.Unlock()
		return nil
	}
	ask, err := p.asking(a, by, relayed)
	if err != nil {
		p.mu.Unlock()
		return err
	}
	look := &pending{mac: mac, done: done}
	p.pending[a] = look
	again := false
	look.timer = time.AfterFunc(probeTime/2, func() {
		p.mu.Lock()
		if !again { // one may be lost
			again = true
			look.timer.Reset(probeTime / 2)
			p.mu.Unlock()
			_ = ask()
			return
		}
		p.mu.Unlock()
		p.found(a, look, "")
	})
	p.mu.Unlock()
	// A cable that takes nothing has nobody else on it.
	_ = ask()
	return nil
}

// asking is how somebody at an address is asked. The lock is held.
func (p *prober) asking(a netip.Addr, by *port, relayed bool) (func() error, error) {
	if relayed {
		if p.icmp == nil {
			conn, err := net.ListenIP("ip4:icmp", &net.IPAddr{IP: net.IPv4zero})
			if err != nil {
				return nil, fmt.Errorf("open a socket for ICMP: %w", err)
			}
			p.icmp = conn
			go p.hearICMP(conn)
		}
		conn := p.icmp
		return func() error {
			_, err := conn.WriteToIP(echo(uint16(os.Getpid())), &net.IPAddr{IP: a.AsSlice()})
			return err
		}, nil
	}
	// Each time: a bridge has another one whenever it gets a port.
	i, err := net.InterfaceByIndex(by.device.Index)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", by.device.Name, err)
	}
	mac := i.HardwareAddr
	if len(mac) != 6 { // no Ethernet, no ARP
		return func() error { return nil }, nil
	}
	if p.sockets[by.device.Name] == nil {
		f, err := listenARP(by.device.Index)
		if err != nil {
			return nil, err
		}
		p.sockets[by.device.Name] = f
		go p.hearARP(f)
	}
	return func() error {
		return by.frame(unix.ETH_P_ARP, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, arpProbe(a, mac))
	}, nil
}

// found ends a look, once.
func (p *prober) found(a netip.Addr, look *pending, somebody string) {
	p.mu.Lock()
	if p.pending[a] != look {
		p.mu.Unlock()
		return
	}
	delete(p.pending, a)
	look.timer.Stop()
	p.mu.Unlock()
	look.done(somebody)
}

// heard is called for whoever says that it has an address.
func (p *prober) heard(a netip.Addr, somebody string) {
	p.mu.Lock()
	look := p.pending[a]
	p.mu.Unlock()
	if look != nil && (somebody != look.mac || somebody == "") {
		p.found(a, look, somebody)
	}
}

func (p *prober) hearARP(f *os.File) {
	b := make([]byte, 256)
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, unix.ENETDOWN): // once for each time that it goes down
			continue
		case err != nil:
			return
		}
		if a, mac, ok := arpSender(b[:n]); ok {
			p.heard(a, mac)
		}
	}
}

func (p *prober) hearICMP(conn *net.IPConn) {
	b := make([]byte, 256)
	for {
		n, from, err := conn.ReadFromIP(b)
		if err != nil {
			return
		}
		if n >= echoBytes && b[0] == echoReply && binary.BigEndian.Uint16(b[4:]) == uint16(os.Getpid()) {
			if a, ok := netip.AddrFromSlice(from.IP.To4()); ok {
				p.heard(a, "somebody behind a relay agent")
			}
		}
	}
}

// keep closes the sockets of interfaces that are not among these.
func (p *prober) keep(ports map[string]*port) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, f := range p.sockets {
		if ports[name] == nil {
			_ = f.Close()
			delete(p.sockets, name)
		}
	}
	if len(ports) == 0 && p.icmp != nil {
		_ = p.icmp.Close()
		p.icmp = nil
	}
}

// listenARP hears the ARP of an interface.
func listenARP(index int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, noPackets(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ARP), Ifindex: index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("hear ARP: %w", err)
	}
	return os.NewFile(uintptr(fd), "arp"), nil
}
