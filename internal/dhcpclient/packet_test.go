package dhcpclient

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/edge"
)

// fromServer is a packet as it comes in.
func fromServer(message []byte) []byte {
	b := datagram(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.50"), message)
	b[20], b[21], b[22], b[23] = 0, serverPort, 0, clientPort
	return b
}

func TestPacketsHaveTheirHeadersAndChecksums(t *testing.T) {
	message := ask{kind: dhcpv4.MessageTypeDiscover, xid: [4]byte{1, 2, 3, 4}, mac: ownMAC, hostname: "rpi0"}.bytes()
	if len(message) < shortestPacket {
		t.Errorf("%d bytes", len(message))
	}
	b := datagram(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), message)
	if got := sum(0, b[:ipBytes]); got != 0xffff {
		t.Errorf("checksum of IP: %#x", got)
	}
	if got := sum(uint32(sum(protocolUDP+uint32(len(b)-ipBytes), b[12:20])), b[ipBytes:]); got != 0xffff {
		t.Errorf("checksum of UDP: %#x", got)
	}
	m, err := dhcpv4.FromBytes(message)
	if err != nil {
		t.Fatal(err)
	}
	if m.HostName() != "rpi0" || !bytes.Equal(m.Options.Get(dhcpv4.OptionClientIdentifier), append([]byte{1}, ownMAC[:]...)) || m.IsBroadcast() {
		t.Errorf("message %s", m.Summary())
	}
	if got, ok := payload(fromServer(message)); !ok || !bytes.Equal(got, message) {
		t.Errorf("payload %d bytes, %t", len(got), ok)
	}
	if _, ok := payload(b); ok {
		t.Error("what clients ask is taken for an answer")
	}
}

// FuzzPacket: whatever comes in, an answer is to be trusted as far as it goes: who
// uses it finds addresses of hosts and times that come one after the other.
func FuzzPacket(f *testing.F) {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, ClientHWAddr: ownMAC[:], YourIPAddr: []byte{10, 0, 0, 50}, Options: dhcpv4.Options{}}
	for _, o := range []dhcpv4.Option{
		dhcpv4.OptMessageType(dhcpv4.MessageTypeAck), dhcpv4.OptServerIdentifier([]byte{10, 0, 0, 1}), hour(), dhcpv4.OptSubnetMask([]byte{255, 255, 255, 0}),
		dhcpv4.OptRouter([]byte{10, 0, 0, 1}), dhcpv4.OptDNS([]byte{9, 9, 9, 9}), dhcpv4.OptDomainName("home.example"),
		dhcpv4.OptGeneric(dhcpv4.OptionClasslessStaticRoute, []byte{16, 10, 7, 10, 0, 0, 9, 0, 10, 0, 0, 1}), dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 120}),
	} {
		m.UpdateOption(o)
	}
	f.Add(fromServer(m.ToBytes()))
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
	f.Add(fromServer(m.ToBytes()))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		claims(b, netip.MustParseAddr("10.0.0.50"), ownMAC)
		message, ok := payload(b)
		if !ok {
			return
		}
		r, err := parseReply(message)
		if err != nil || r.kind == dhcpv4.MessageTypeNak {
			return
		}
		l := r.lease("eth0", start)
		if !isHost(l.Addr.Addr()) || l.Addr.Bits() < 1 || !isHost(l.Server) && !l.Server.IsValid() {
			t.Errorf("lease %+v", l)
		}
		if !l.Expires.IsZero() && (!l.Renew.After(start) || !l.Rebind.After(l.Renew) || !l.Expires.After(l.Rebind)) {
			t.Errorf("renew %s, rebind %s, expires %s", l.Renew, l.Rebind, l.Expires)
		}
		if l.MTU != 0 && l.MTU < leastMTU {
			t.Errorf("MTU %d", l.MTU)
		}
		for _, route := range l.Routes {
			if !route.To.IsValid() || route.To != route.To.Masked() || !route.Via.Is4() {
				t.Errorf("route %+v", route)
			}
		}
		for _, a := range l.DNS {
			if !isHost(a) {
				t.Errorf("DNS server %s", a)
			}
		}
		// What is kept of it says the same.
		data, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseLease(data, "eth0", start)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if isHost(l.Server) && (back == nil || back.Addr != l.Addr || !back.Expires.Equal(l.Expires)) {
			t.Errorf("got back %+v of %s", back, data)
		}
	})
}

func TestWhatIsKeptOfALease(t *testing.T) {
	dir := t.TempDir()
	name := File(dir, "eth0")
	l := &Lease{LinkLease: edge.LinkLease{Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.50/24"), Server: netip.MustParseAddr("10.0.0.1"), Begun: start, Expires: start.Add(time.Hour)}, MAC: "02:00:00:00:00:51"}
	if err := save(name, l); err != nil {
		t.Fatal(err)
	}
	if got, err := load(name, "eth0", start); err != nil || got == nil || got.Addr != l.Addr || got.MAC != l.MAC {
		t.Errorf("got %+v, %v", got, err)
	}
	for what, get := range map[string]func() (*Lease, error){
		"over":                 func() (*Lease, error) { return load(name, "eth0", start.Add(time.Hour)) },
		"of another interface": func() (*Lease, error) { return load(name, "eth1", start) },
		"of the future":        func() (*Lease, error) { return load(name, "eth0", start.Add(-time.Hour)) },
		"not there":            func() (*Lease, error) { return load(File(dir, "eth1"), "eth1", start) },
	} {
		if got, err := get(); got != nil || err != nil {
			t.Errorf("a lease that is %s: %+v, %v", what, got, err)
		}
	}
	if err := os.WriteFile(File(dir, "eth2"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(File(dir, "eth2"), "eth2", start); err == nil {
		t.Error("half a file is no error")
	}
	if err := Forget(dir, []string{"eth0"}); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 1 || files[0] != name {
		t.Errorf("left: %q", files)
	}
	if err := save(name, nil); err != nil {
		t.Fatal(err)
	}
	if err := save(name, nil); err != nil {
		t.Error(err)
	}
}
