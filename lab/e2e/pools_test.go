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
	for _, mac := range strings.Fields(out) {
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
	// Other machines at home and in the cluster go by the edge's own name.
	if err := opened("w1", atPort(addresses[0], port))(); err != nil {
		t.Errorf("from a node: %v", err)
	}
}

// One port is another Service's at each address, and at the interface's own,
// whoever comes first and whatever moves its bytes.
func poolOnePort(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	other := planes[1-slices.Index(planes, plane)]
	own := func(s *corev1.Service) {}
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

// gatehouse is stopped, killed and started: addresses stay where they are, what
// the kernel moves goes on, and each Service has its own again.
func poolRestart(t *testing.T) {
	ns := room(t)
	ports, addresses, versions := map[string]int{}, map[string]string{}, map[string]string{}
	for _, plane := range planes {
		ports[plane] = freshPort()
		create(t, told(ns, plane, plane, ports[plane], pooled("pool")), ready, ready, ready)
		addresses[plane] = given(t, ns, plane, 1)[0]
		eventually(t, 20*time.Second, "open", opened("home1", atPort(addresses[plane], ports[plane])))
		eventually(t, 20*time.Second, "the finalizer", finalized(t, ns, plane, true))
		eventually(t, 20*time.Second, "the condition", conditionIs(t, ns, plane, "gatehouse.e13.dev/Exposed", "True", "Open"))
		versions[plane] = serviceNow(t, ns, plane).ResourceVersion
	}
	moved := startSteady(t, atPort(addresses[nat], ports[nat]))
	for _, end := range []func(context.Context, string) error{lab.Stop, lab.Kill} {
		if err := end(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		for plane, address := range addresses {
			if err := want(onEdge(t, address), "eth1"); err != nil {
				t.Errorf("%s, with gatehouse ended: %v", plane, err)
			}
			if _, err := lab.Exec(t.Context(), "home2", "ping", "-c", "1", "-W", "2", address); err != nil {
				t.Errorf("%s, with gatehouse ended: %v", plane, err)
			}
		}
		if err := closed("w1", atPort(addresses[nat], ports[nat]))(); err != nil {
			t.Errorf("with gatehouse ended, from another zone: %v", err)
		}
		if err := lab.Start(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "gatehouse is ready again", isReadyAgain)
		for plane, address := range addresses {
			eventually(t, 20*time.Second, "open again", opened("home1", atPort(address, ports[plane])))
			if s := serviceNow(t, ns, plane); s.ResourceVersion != versions[plane] {
				t.Errorf("%s was written to: %+v", plane, s)
			}
		}
	}
	moved.holds(t, "gatehouse was restarted")
	// A new one does not get what another has.
	create(t, told(ns, "new", proxy, freshPort(), pooled("pool")), ready, ready, ready)
	if address := given(t, ns, "new", 1)[0]; address == addresses[proxy] || address == addresses[nat] {
		t.Errorf("it is given %s, which another one has", address)
	}
}

// Addresses by request, of a pool by its name too, and what comes of asking for
// what one cannot have.
func poolRequest(t *testing.T) {
	ns := room(t)
	made := func(name string, change func(*corev1.Service)) (s *corev1.Service, port int) {
		t.Helper()
		port = freshPort()
		s = told(ns, name, proxy, port, change)
		create(t, s, ready, ready, ready)
		return s, port
	}
	has := func(name string, port int, address string) {
		t.Helper()
		eventually(t, 15*time.Second, name+" has what it asked for", ingressIs(t, ns, name, address))
		for a := range strings.SplitSeq(address, ",") {
			eventually(t, 20*time.Second, name+" is open", opened("home1", atPort(a, port)))
		}
	}
	s, port := made("exact", pooled("pool", asking(poolFree)))
	has("exact", port, poolFree)
	_, of := made("of-a-pool", pooled("pool", asking("asked")))
	has("of-a-pool", of, askedFirst)
	_, own := made("own", pooled("pool", asking(homeAddr)))
	has("own", own, homeAddr)
	for _, c := range []struct{ name, addresses, reason string }{
		{"in-use", poolFree, "AddressInUse"},
		{"in-no-pool", "10.11.12.250", "AddressNotInPool"},
		{"of-no-pool", "nobodys", "AnnotationInvalid"},
		{"not-allowed", smallAddr, "AddressNotAllowed"},
		{"of-another-zone", clusterAddr, "AddressNotInPool"},
	} {
		_, port := made(c.name, pooled("pool", asking(c.addresses)))
		eventually(t, 20*time.Second, c.name+": its owner is told", saidTo(t, ns, c.name, "Warning "+c.reason+": "))
		eventually(t, 20*time.Second, c.name+": the condition says so", conditionIs(t, ns, c.name, "gatehouse.e13.dev/Exposed", "False", c.reason))
		if err := errors.Join(ingressIs(t, ns, c.name, "")(), closed("home1", atHome(port))(), unserved("home1", atPort(poolFree, port))()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// It asks for another one while it is used.
	kept := dialogWith(t, "home1", atPort(poolFree, port), "")
	annotate(t, s, map[string]string{"gatehouse.e13.dev/addresses": "10.11.12.233"})
	has("exact", port, "10.11.12.233")
	eventually(t, 20*time.Second, "closed at the one before", unserved("home1", atPort(poolFree, port)))
	kept.goesOn(t, "after the address was changed")
}

// Services with one key, in one namespace, have one address, and each its ports.
func poolSharing(t *testing.T, plane string) {
	ns := room(t)
	one, two := freshPort(), freshPort()
	create(t, told(ns, "one", plane, one, pooled("pool", sharing("mail"))), ready, ready, ready)
	address := given(t, ns, "one", 1)[0]
	create(t, told(ns, "two", plane, two, pooled("pool", sharing("mail"))), ready, ready, ready)
	eventually(t, 20*time.Second, "the other has the same", ingressIs(t, ns, "two", address))
	for _, port := range []int{one, two} {
		eventually(t, 20*time.Second, "both are open", opened("home1", atPort(address, port)))
	}
	anotherSecond(t, ns, "one")
	create(t, told(ns, "late", plane, one, pooled("pool", sharing("mail"))), ready, ready, ready)
	eventually(t, 20*time.Second, "one port, two Services", saidTo(t, ns, "late", "Warning PortConflict: "))
	if err := ingressIs(t, ns, "late", "")(); err != nil {
		t.Error(err)
	}
	create(t, told(ns, "other-key", plane, one, pooled("pool", sharing("web"))), ready, ready, ready)
	create(t, told(ns, "no-key", plane, one, pooled("pool")), ready, ready, ready)
	elsewhere := ns + "-2"
	makeNamespace(t, elsewhere)
	create(t, told(elsewhere, "two", plane, freshPort(), pooled("pool", sharing("mail"))), ready, ready, ready)
	seen := map[string]string{address: "one"}
	for name, at := range map[string]string{"other-key": ns, "no-key": ns, "two": elsewhere} {
		got := given(t, at, name, 1)[0]
		if seen[got] != "" {
			t.Errorf("%s/%s has %s, which is that of %s", at, name, got, seen[got])
		}
		seen[got] = at + "/" + name
	}
	// The first goes; the address stays with the others.
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the youngest has the port", ingressIs(t, ns, "late", address))
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(address, one)))
	if err := errors.Join(ingressIs(t, ns, "two", address)(), opened("home1", atPort(address, two))()); err != nil {
		t.Error(err)
	}
}

// A pool with one address: who comes second is told, and not opened elsewhere.
// When the first has gone the address is its own for a while, also for another
// Service of its name; then it is the other's.
func poolExhausted(t *testing.T) {
	ns, port, next := room(t), freshPort(), freshPort()
	create(t, told(ns, "first", proxy, port, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "the first has it", ingressIs(t, ns, "first", smallAddr))
	anotherSecond(t, ns, "first")
	create(t, told(ns, "second", proxy, next, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "the second is told", saidTo(t, ns, "second", "Warning PoolExhausted: "))
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "second", "gatehouse.e13.dev/Exposed", "False", "PoolExhausted"))
	if err := errors.Join(ingressIs(t, ns, "second", "")(), closed("home1", atHome(next))(), unserved("home1", atPort(smallAddr, next))()); err != nil {
		t.Error(err)
	}
	leave := func() {
		t.Helper()
		err := kube.CoreV1().Services(ns).Delete(t.Context(), "first", metav1.DeleteOptions{})
		if err == nil {
			err = kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), "first", metav1.DeleteOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the first is gone", gone(t, ns, "first"))
	}
	leave()
	create(t, told(ns, "first", proxy, port, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "who comes back has it again", ingressIs(t, ns, "first", smallAddr))
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(smallAddr, port)))
	leave()
	left := time.Now()
	took := eventually(t, 2*time.Minute, "the second has it", ingressIs(t, ns, "second", smallAddr))
	if took < 45*time.Second {
		t.Errorf("the address was free %s after the first had gone", time.Since(left))
	}
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(smallAddr, next)))
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "nobody has it: it is not on the edge box any more", func() error { return want(onEdge(t, smallAddr), "") })
	if answers := whoHas(t, "home1", "eth0", smallAddr); len(answers) > 0 {
		t.Errorf("%q answer for it", answers)
	}
}

// Another machine has the address: it is not taken, and the event says who. When
// that one has gone the Service is open.
func poolTaken(t *testing.T) {
	ns, port := room(t), freshPort()
	home2 := func(verb string) error {
		_, err := lab.Exec(context.Background(), "home2", "ip", "addr", verb, takenAddr+"/24", "dev", "eth0")
		return err
	}
	if err := home2("add"); err != nil {
		t.Fatal(err)
	}
	there := true
	t.Cleanup(func() {
		if there {
			_ = home2("del")
		}
	})
	mac := hardwareAddress(t, "home2", "eth0")
	create(t, told(ns, "late", proxy, port, pooled("taken")), ready, ready, ready)
	eventually(t, 15*time.Second, "its owner is told by whom", func() error {
		for _, e := range eventsIn(t, ns, "late") {
			if strings.HasPrefix(e, "Warning AddressConflict: ") && strings.Contains(e, takenAddr) && strings.Contains(e, mac) {
				return nil
			}
		}
		return fmt.Errorf("the events are %q; want %s of %s", eventsIn(t, ns, "late"), takenAddr, mac)
	})
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "late", "gatehouse.e13.dev/Exposed", "False", "AddressConflict"))
	if err := errors.Join(ingressIs(t, ns, "late", "")(), want(onEdge(t, takenAddr), ""), closed("home1", atHome(port))()); err != nil {
		t.Error(err)
	}
	if answers := whoHas(t, "home1", "eth0", takenAddr); !slices.Equal(answers, []string{mac}) {
		t.Errorf("these answer for it: %q; want %s", answers, mac)
	}
	if err := home2("del"); err != nil {
		t.Fatal(err)
	}
	there = false
	took := eventually(t, 90*time.Second, "it has the address when the other one has gone", ingressIs(t, ns, "late", takenAddr))
	t.Logf("%.1f s after the other one has gone", took.Seconds())
	eventually(t, 20*time.Second, "open", opened("home1", atPort(takenAddr, port)))
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

// A Service of another class gets nothing of a pool, nor one that follows the
// address of another controller.
func poolForeign(t *testing.T) {
	ns, port := room(t), freshPort()
	foreign := func(s *corev1.Service) {
		class := "example.com/other"
		s.Spec.LoadBalancerClass = &class
		delete(s.Annotations, "gatehouse.e13.dev/target")
	}
	s := told(ns, "foreign", proxy, port, pooled("pool", foreign))
	s.Spec.Ports[0].Port = int32(port)
	create(t, s, ready, ready, ready)
	create(t, told(ns, "asks", proxy, freshPort(), pooled("pool", foreign, asking("10.11.12.227"))), ready, ready, ready)
	// Its address is that of a worker, where its own controller would have it.
	patchStatus(t, s, "example-controller", map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []map[string]any{{"ip": "10.0.0.101"}}}}})
	create(t, told(ns, "later", proxy, freshPort(), pooled("pool")), ready, ready, ready)
	if address := given(t, ns, "later", 1)[0]; address == "10.11.12.227" {
		t.Error("the address that it asked for was given to the next one")
	}
	for _, name := range []string{"foreign", "asks"} {
		now := serviceNow(t, ns, name)
		if len(now.Finalizers) > 0 || len(now.Status.Conditions) > 0 || len(eventsIn(t, ns, name)) > 1 {
			t.Errorf("%s was written to: %+v, %q", name, now, eventsIn(t, ns, name))
		}
	}
	if err := want(onEdge(t, "10.11.12.227"), ""); err != nil {
		t.Error(err)
	}
	if err := ingressIs(t, ns, "foreign", "10.0.0.101")(); err != nil {
		t.Error(err)
	}
	eventually(t, 20*time.Second, "it is followed, at the own address", func() error {
		if isOpen, why := rowOf(t, ns+"/foreign"); !isOpen {
			return errors.New(why)
		}
		return nil
	})
}

// spec.loadBalancerIP (deprecated since 1.24) asks for an address as the annotation
// does, which comes first.
func contractLoadBalancerIP(t *testing.T, plane string) {
	ns, port, other := room(t), freshPort(), freshPort()
	field, annotation := "10.11.12.224", "10.11.12.225"
	if plane == nat {
		field, annotation = "10.11.12.222", "10.11.12.223"
	}
	with := func(s *corev1.Service) { s.Spec.LoadBalancerIP = field } //nolint:staticcheck // that it is deprecated is what this is about
	create(t, told(ns, "field", plane, port, pooled("pool", with)), ready, ready, ready)
	eventually(t, 15*time.Second, "it has it", ingressIs(t, ns, "field", field))
	eventually(t, 20*time.Second, "open", opened("home1", atPort(field, port)))
	create(t, told(ns, "both", plane, other, pooled("pool", with, asking(annotation))), ready, ready, ready)
	eventually(t, 15*time.Second, "the annotation comes first", ingressIs(t, ns, "both", annotation))
	eventually(t, 20*time.Second, "open", opened("home1", atPort(annotation, other)))
}
