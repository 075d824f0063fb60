package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The pools of the lab are for Services with the label e2e, so that all others
// have the zone's own address. Theirs are the addresses:
const (
	poolFirst, poolLast = "10.11.12.200", "10.11.12.229"
	pool6               = "fd00:11:12::1000/120"
	askedFirst          = "10.11.12.230" // of pool asked, which gives none by itself
	smallAddr           = "10.11.12.240" // all of pool small
	takenAddr           = "10.11.12.241" // of pool taken, in which home2 has its fingers
	poolFree            = "10.11.12.229" // nobody asks for it but by name
)

const poolsConfig = `pools:
  - {name: home, zone: home, addresses: [10.11.12.200-10.11.12.229, "fd00:11:12::1000/120"], labels: e2e=pool}
  - {name: asked, zone: home, addresses: [10.11.12.230-10.11.12.233], auto: false, labels: e2e=pool}
  - {name: small, zone: home, addresses: [10.11.12.240], labels: e2e=small}
  - {name: taken, zone: home, addresses: [10.11.12.241], labels: e2e=taken}
`

// pooled has a Service get addresses of the lab's pools, "pool", "small" or "taken".
func pooled(pools string, changes ...func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Labels = map[string]string{"e2e": pools}
		for _, change := range changes {
			change(s)
		}
	}
}

// asking has a Service ask for addresses.
func asking(addresses string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations["gatehouse.e13.dev/addresses"] = addresses }
}

// sharing gives a Service a sharing key.
func sharing(key string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations["gatehouse.e13.dev/sharing-key"] = key }
}

// given waits for the addresses that a Service is given, in the order of its status.
func given(t *testing.T, ns, name string, n int) (addresses []string) {
	t.Helper()
	eventually(t, 15*time.Second, name+" is given addresses", func() error {
		addresses = nil
		for _, in := range serviceNow(t, ns, name).Status.LoadBalancer.Ingress {
			addresses = append(addresses, in.IP)
		}
		if len(addresses) != n {
			return fmt.Errorf("it has %q, want %d; events: %q", addresses, n, eventsIn(t, ns, name))
		}
		return nil
	})
	return addresses
}

// inPool says whether an address is one of pool home.
func inPool(address string) bool {
	a := netip.MustParseAddr(address)
	first, last := netip.MustParseAddr(poolFirst), netip.MustParseAddr(poolLast)
	return a.Is4() && first.Compare(a) <= 0 && a.Compare(last) <= 0 || netip.MustParsePrefix(pool6).Contains(a)
}

func atPort(address string, port int) string { return net.JoinHostPort(address, fmt.Sprint(port)) }

// hardwareAddress is that of an interface of a host.
func hardwareAddress(t *testing.T, host, device string) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), host, "cat", "/sys/class/net/"+device+"/address")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// neighbour is what a host believes to be the hardware address of an address.
func neighbour(t *testing.T, host, device, address string) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), host, "ip", "neigh", "show", address, "dev", device)
	if err != nil {
		t.Fatal(err)
	}
	if _, after, found := strings.Cut(out, "lladdr "); found {
		return strings.Fields(after)[0]
	}
	return ""
}

// whoHas asks by ARP who has an address, and returns all that answer.
func whoHas(t *testing.T, host, device, address string) (answers []string) {
	t.Helper()
	out, _ := lab.Exec(t.Context(), host, "arping", "-c", "2", "-W", "0.3", "-r", "-i", device, address) // fails if nobody does
	for mac := range strings.FieldsSeq(out) {
		if !slices.Contains(answers, mac) {
			answers = append(answers, mac)
		}
	}
	return answers
}

// onEdge says on which interfaces of the edge box an address is.
func onEdge(t *testing.T, address string) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), "edge", "ip", "-o", "addr", "show", "to", address)
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for line := range strings.Lines(out) {
		devices = append(devices, strings.Fields(line)[1])
	}
	return strings.Join(devices, ",")
}

// Services have addresses of their own, for which the edge box answers in their
// zone only, and where only they are reached.
func TestPools(t *testing.T) {
	startTellers(t)
	for _, c := range []struct {
		name   string
		test   func(t *testing.T)
		planes func(t *testing.T, plane string)
		alone  bool
	}{
		{name: "stays over a restart", test: poolRestart, alone: true},
		{name: "a cable that is pulled", test: poolCable, alone: true},
		{name: "an address", planes: poolAddress},
		{name: "both IP families", planes: poolFamilies},
		{name: "the wall", planes: poolWall},
		{name: "one port at each address", planes: poolOnePort},
		{name: "UDP", planes: poolUDP},
		{name: "by request", test: poolRequest},
		{name: "sharing key", planes: poolSharing},
		{name: "exhausted, and freed", test: poolExhausted},
		{name: "taken by another machine", test: poolTaken},
		{name: "neighbours are told", test: poolAnnounced},
		{name: "of another class", test: poolForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.alone {
				t.Parallel()
			}
			if c.test != nil {
				c.test(t)
				return
			}
			for _, plane := range planes {
				t.Run(plane, func(t *testing.T) {
					t.Parallel()
					c.planes(t, plane)
				})
			}
		})
	}
}

// A Service gets an address of the pool, is reached there from its zones and from
// nowhere else, and nowhere else. Its neighbours find it at the zone's interface.
func poolAddress(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "pooled", plane, port, pooled("pool"))
	create(t, s, ready, ready, ready)
	address := given(t, ns, "pooled", 1)[0]
	if !inPool(address) {
		t.Fatalf("it is given %s", address)
	}
	at := atPort(address, port)
	eventually(t, 20*time.Second, "open", onlyBy("home1", at, "w1", "w2", "w3"))
	eventually(t, 20*time.Second, "its owner is told", saidTo(t, ns, "pooled", "Normal IPAllocated: "+address+" of pool home"))
	eventually(t, 20*time.Second, "and where it is open", saidTo(t, ns, "pooled", fmt.Sprintf("Normal ZoneOpened: open in zone home at %s, port %d", address, port)))
	if err := errors.Join(want(onEdge(t, address), "eth1"), closed("home1", atHome(port))()); err != nil {
		t.Error(err)
	}
	mac := hardwareAddress(t, "edge", "eth1")
	if err := want(neighbour(t, "home1", "eth0", address), mac); err != nil {
		t.Errorf("home1's neighbour cache: %v", err)
	}
	if answers := whoHas(t, "home2", "eth0", address); !slices.Equal(answers, []string{mac}) {
		t.Errorf("home2 asks who has %s, and is answered by %q, want %s", address, answers, mac)
	}
	if answers := whoHas(t, "w1", "eth0", address); len(answers) > 0 {
		t.Errorf("w1 asks who has %s, and is answered by %q", address, answers)
	}
	if _, err := lab.Exec(t.Context(), "router", "ping", "-c", "1", "-W", "2", address); err != nil {
		t.Errorf("the router's ping: %v", err)
	}
	if err := want(neighbour(t, "router", "lan", address), mac); err != nil {
		t.Errorf("the router's neighbour cache: %v", err)
	}
	for _, host := range []string{"inet", "w1"} {
		if err := closed(host, at)(); err != nil {
			t.Errorf("from another zone: %v", err)
		}
	}

	kept := dialogWith(t, "home1", at, "")
	annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": "home,cluster"})
	eventually(t, 20*time.Second, "open to nodes, too", onlyBy("w1", at, "w1", "w2", "w3"))
	eventually(t, 20*time.Second, "the cluster has no pool", ingressIs(t, ns, "pooled", address+","+clusterAddr))
	annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": "home"})
	eventually(t, 20*time.Second, "closed to nodes", closed("w1", at))
	eventually(t, 20*time.Second, "its address again", ingressIs(t, ns, "pooled", address))
	kept.goesOn(t, "a zone came and went")
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "pooled", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "closed", closed("home1", at))
	kept.goesOn(t, "after the Service was deleted")
}

func poolFamilies(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "both", plane, port, pooled("pool", ofFamilies(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv6Protocol, corev1.IPv4Protocol)))
	create(t, s, ready, ready, ready)
	putSlice(t, slice6(s, ready, ready, ready))
	addresses := given(t, ns, "both", 2)
	if !inPool(addresses[0]) || !inPool(addresses[1]) || !strings.Contains(addresses[0], ":") || strings.Contains(addresses[1], ":") {
		t.Fatalf("it is given %q", addresses)
	}
	mac := hardwareAddress(t, "edge", "eth1")
	for _, address := range addresses {
		at := atPort(address, port)
		eventually(t, 20*time.Second, "open at "+at, onlyBy("home1", at, "w1", "w2", "w3"))
		if err := errors.Join(want(neighbour(t, "home1", "eth0", address), mac), want(onEdge(t, address), "eth1")); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	out, err := lab.Exec(t.Context(), "home2", "ndisc6", "-q", "-m", "-w", "500", addresses[0], "eth0")
	if answers := strings.Fields(strings.ToLower(out)); err != nil || !slices.Equal(slices.Compact(answers), []string{mac}) {
		t.Errorf("home2 asks who has %s, and is answered by %q, want %s: %v", addresses[0], answers, mac, err)
	}
	if out, err := lab.Exec(t.Context(), "w1", "ndisc6", "-q", "-r", "1", "-w", "500", addresses[0], "eth0"); err == nil {
		t.Errorf("w1 asks who has %s, and is answered: %s", addresses[0], out)
	}
}

// What else listens on the machine is not reached at an address of a pool, by TCP
// or UDP, whichever way one comes. It answers to ping.
func poolWall(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "walled", plane, port, pooled("pool", ofFamilies(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv4Protocol, corev1.IPv6Protocol), func(s *corev1.Service) {
		s.Annotations["gatehouse.e13.dev/zones"] = "home,cluster"
	}))
	create(t, s, ready, ready, ready)
	putSlice(t, slice6(s, ready, ready, ready))
	addresses := given(t, ns, "walled", 4)[:2]
	other := freshPort()
	program := listen(t, "edge", fmt.Sprintf(":%d", other))
	go func() {
		for {
			conn, err := program.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("the program\n"))
			conn.Close()
		}
	}()
	startEcho(t, "edge", other)
	own := []string{homeAddr, homeAddr6}
	for i, address := range addresses {
		eventually(t, 20*time.Second, "open at "+address, opened("home1", atPort(address, port)))
		c, err := ring("home1", atPort(own[i], other))
		if err != nil || c.worker != "the program" {
			t.Fatalf("the program is not reached at the own address: nothing is shown: %v", err)
		}
		c.conn.Close()
		if _, err := question(asker(t, "home1", atPort(own[i], other)), time.Second); err != nil {
			t.Fatalf("the program is not reached by UDP at the own address: nothing is shown: %v", err)
		}
		for _, host := range []string{"home1", "w1", "inet"} {
			if host == "inet" && strings.Contains(address, ":") {
				continue // it has no IPv6
			}
			if c, err := ring(host, atPort(address, other)); err == nil {
				t.Errorf("%s is answered by %q at %s", host, c.worker, atPort(address, other))
			} else if host == "home1" && !errors.Is(err, errConnRefused) {
				t.Errorf("%s is not refused: %v", host, err)
			}
			if host == "w1" && strings.Contains(address, ":") {
				continue // nodes have no way there for datagrams without a connection to tell
			}
			if how, err := unanswered(asker(t, host, atPort(address, other))); err != nil {
				t.Errorf("%s by UDP to %s: %s %v", host, atPort(address, other), how, err)
			}
		}
		if _, err := lab.Exec(t.Context(), "home1", "ping", "-c", "1", "-W", "2", address); err != nil {
			t.Errorf("ping: %v", err)
		}
	}
	eventually(t, 20*time.Second, "open to a node", opened("w1", atPort(addresses[0], port)))
}

// One port is another Service's at each address, and at the interface's own,
// whoever comes first and whatever moves its bytes.
func poolOnePort(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	other := planes[1-slices.Index(planes, plane)]
	own := func(*corev1.Service) {}
	type service struct {
		name, plane string
		change      func(*corev1.Service)
		by          int // the worker that answers
	}
	at := map[string]string{}
	add := func(c service) {
		t.Helper()
		s := told(ns, c.name, c.plane, port, c.change)
		conditions := []condition{absent, absent, absent}
		conditions[c.by] = ready
		create(t, s, conditions...)
		at[c.name] = atPort(given(t, ns, c.name, 1)[0], port)
	}
	all := func(when string, who map[string]string) {
		t.Helper()
		for name, worker := range who {
			eventually(t, 20*time.Second, when+", "+name+" is answered by its own", onlyBy("home1", at[name], worker))
		}
	}
	drop := func(name string) {
		t.Helper()
		if err := kube.CoreV1().Services(ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, name+" is gone", gone(t, ns, name))
	}
	ofPool, shared := service{"of-pool", plane, pooled("pool"), 0}, service{"shared", plane, own, 2}
	add(ofPool)
	add(shared)
	add(service{"of-pool-too", other, pooled("pool"), 1})
	who := map[string]string{"of-pool": "w1", "of-pool-too": "w2", "shared": "w3"}
	all("at first", who)
	if at["shared"] != atHome(port) || at["of-pool"] == at["of-pool-too"] {
		t.Fatalf("they are at %v", at)
	}
	steady := map[string]steady{}
	for _, name := range []string{"of-pool", "of-pool-too"} {
		steady[name] = startSteady(t, at[name])
	}
	drop("shared")
	eventually(t, 20*time.Second, "closed", closed("home1", at["shared"]))
	all("without the shared one", map[string]string{"of-pool": "w1", "of-pool-too": "w2"})
	add(shared)
	all("with it again", who)
	for name, l := range steady {
		l.holds(t, name+": another one at its port came and went")
	}
	drop("of-pool")
	eventually(t, 20*time.Second, "closed", closed("home1", at["of-pool"]))
	add(ofPool)
	all("the first one again", who)
}

// Datagrams to an address of a pool are answered from it.
func poolUDP(t *testing.T, plane string) {
	ns, port, backends := room(t), freshPort(), freshPort()
	startEcho(t, "w1", backends)
	s := bare(ns, "udp", "UDP", port, backends, map[string]string{"gatehouse.e13.dev/data-plane": plane, "gatehouse.e13.dev/zones": "home,cluster"})
	pooled("pool", ofFamilies(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv4Protocol, corev1.IPv6Protocol))(s)
	create(t, s, ready, absent, absent)
	putSlice(t, slice6(s, ready, absent, absent))
	addresses := given(t, ns, "udp", 4)
	for _, address := range addresses[:2] {
		eventually(t, 20*time.Second, "answered at "+address, answers(t, "home1", atPort(address, port)))
	}
	// A node, by the address of the home LAN.
	eventually(t, 20*time.Second, "a node is answered", answers(t, "w2", atPort(addresses[0], port)))
	for _, host := range []string{"inet", "home1"} {
		address := map[string]string{"inet": addresses[0], "home1": homeAddr}[host]
		if how, err := unanswered(asker(t, host, atPort(address, port))); err != nil {
			t.Errorf("%s at %s: %s %v", host, address, how, err)
		}
	}
}

// startEcho answers datagrams on a host.
func startEcho(t *testing.T, host string, port int) {
	t.Helper()
	var packets net.PacketConn
	err := lab.Do(host, func() (err error) {
		packets, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := packets.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = packets.WriteTo([]byte("the program"), from)
			}
		}
	}()
}

// Whoever knew another machine by the address is told, by ARP and NDP, so that it
// does not send to the one before.
func poolAnnounced(t *testing.T) {
	ns, port := room(t), freshPort()
	const address, address6, before = "10.11.12.228", "fd00:11:12::10fe", "02:00:00:00:00:99"
	heard := listenFor(t, "home1", "arp or icmp6")
	for _, a := range []string{address, address6} {
		if _, err := lab.Exec(t.Context(), "home1", "ip", "neigh", "replace", a, "lladdr", before, "nud", "reachable", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	s := told(ns, "announced", proxy, port, pooled("pool", asking(address+", "+address6), ofFamilies(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv4Protocol, corev1.IPv6Protocol)))
	create(t, s, ready, ready, ready)
	putSlice(t, slice6(s, ready, ready, ready))
	eventually(t, 15*time.Second, "it has them", ingressIs(t, ns, "announced", address+","+address6))
	mac := hardwareAddress(t, "edge", "eth1")
	for _, a := range []string{address, address6} {
		eventually(t, 20*time.Second, "home1 knows better, before it asks", func() error { return want(neighbour(t, "home1", "eth0", a), mac) })
		eventually(t, 20*time.Second, "open", opened("home1", atPort(a, port)))
	}
	eventually(t, 20*time.Second, "the announcements were heard", func() error {
		// tcpdump's words: a request of its own for itself, or an answer to all; an
		// advertisement to all.
		text := heard()
		arp := strings.Contains(text, "who-has "+address+" tell "+address) || strings.Contains(text, "who-has "+address+" (ff:ff:ff:ff:ff:ff) tell "+address) ||
			strings.Contains(text, "Announcement "+address) || strings.Contains(text, "Reply "+address+" is-at "+mac)
		ndp := strings.Contains(text, "ff02::1: ICMP6, neighbor advertisement, tgt is "+address6)
		if !arp || !ndp {
			return fmt.Errorf("ARP %v, NDP %v:\n%s", arp, ndp, text)
		}
		return nil
	})
}

// listenFor runs tcpdump on a host; what it returns says what was heard so far.
func listenFor(t *testing.T, host, filter string) func() string {
	t.Helper()
	cmd, err := lab.Command(context.Background(), host, "tcpdump", "-n", "-l", "-i", "eth0", filter)
	if err != nil {
		t.Fatal(err)
	}
	var out, said lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, 20*time.Second, "tcpdump listens", func() error {
		if text := said.String(); !strings.Contains(text, "listening on") {
			return errors.New(text)
		}
		return nil
	})
	return out.String
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
