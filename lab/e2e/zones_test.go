package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const errConnRefused = syscall.ECONNREFUSED

func readAll(resp *http.Response) string {
	data, _ := io.ReadAll(resp.Body)
	return string(data)
}

// plan is what `gatehouse plan -o json` prints, as far as the tests look at it.
type plan struct {
	Exposures []struct {
		Name    string `json:"name"`
		Service string `json:"service"`
		Zone    string `json:"zone"`
		Port    int    `json:"port"`
		Open    bool   `json:"open"`
		Reason  string `json:"reason"`

		Notes []string `json:"notes"`

		Client       string `json:"clientAddress"`
		ClientSeen   bool   `json:"clientAddressSeen"`
		ClientRemedy string `json:"clientAddressRemedy"`

		Shares []struct {
			Pod   string  `json:"pod"`
			Share float64 `json:"share"`
		} `json:"shares"`
	} `json:"exposures"`
}

// planNow runs gatehouse plan on the edge box, with the daemon's own rights.
func planNow(t *testing.T) plan {
	t.Helper()
	out := planText(t, "-o", "json")
	var p plan
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatalf("plan -o json: %v:\n%s", err, out)
	}
	return p
}

func planText(t *testing.T, args ...string) string {
	t.Helper()
	kubeconfig, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(t.Context(), "edge", append([]string{"env", "KUBECONFIG=" + kubeconfig, gatehouse, "plan", "-c", configFile}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// route is one way from a client to an address of the edge box, with the zone
// of the interface that it comes in on. Which address a client speaks to does
// not decide: it is the weak-host attack to speak to another zone's.
type route struct{ host, address, zone string }

var routes = []route{
	{"inet", publicAddr, "internet"},
	{"inet", internetAddr, "internet"},
	{"inet", homeAddr, "internet"},    // the attack: the home-side address, from the Internet
	{"inet", clusterAddr, "internet"}, // and the cluster-side one
	{"home1", homeAddr, "home"},
	{"home2", homeAddr, "home"},
	{"home1", clusterAddr, "home"},
	{"home1", internetAddr, "internet"}, // the MACVLAN has an interface of its own
	{"home1", "fd00:11:12::32", "home"},
	{"w1", clusterAddr, "cluster"},
	{"w1", homeAddr, "cluster"},
	{"w1", internetAddr, "cluster"},
}

// Promise 1: what is open in a zone is reached from there and from nowhere
// else, by any address, and the plan says so beforehand.
func TestZonesAreWalls(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane, func(t *testing.T) { zonesAreWalls(t, plane) })
	}
}

func zonesAreWalls(t *testing.T, plane string) {
	ns := namespace(t)
	public := "public"
	apply(t, deployment(ns, "web", "web", "", 2)+deployment(public, "web", "web", "", 1)+on(plane,
		service(ns, "at-home", "web", "home", "Local", 8001)+
			service(ns, "in-cluster", "web", "cluster", "Cluster", 8002)+
			service(ns, "both", "web", "home, cluster", "Cluster", 8003)+
			service(ns, "nowhere", "web", "", "Cluster", 8004)+
			service(ns, "greedy", "web", "internet", "Local", 8005)+ // this namespace may not
			service(ns, "lost", "web", "lan2", "Local", 8006)+
			service(public, "public", "web", "internet", "Local", 8007)+
			service(public, "everywhere", "web", "home,internet,cluster", "Cluster", 8008)))
	t.Cleanup(func() { remove(t, "service,deployment", "-n", public, "--all") })
	awaitPods(t, ns, "web")
	awaitPods(t, public, "web")
	eventually(t, 10*time.Second, "everything that should be open is open", func() error {
		for _, try := range []struct{ host, address string }{
			{"home1", homeAddr + ":8001"},
			{"w1", clusterAddr + ":8002"},
			{"home1", homeAddr + ":8003"},
			{"w1", clusterAddr + ":8003"},
			{"inet", publicAddr + ":8007"},
			{"inet", publicAddr + ":8008"},
			{"home1", homeAddr + ":8008"},
		} {
			if _, err := get(try.host, try.address, time.Second); err != nil {
				return err
			}
		}
		return nil
	})

	p := planNow(t)
	open, openTo6 := map[string][]int{}, map[string][]int{} // by zone; to IPv6 clients
	ports := []int{22, 80, 8000, 9180, 10250, 10256}
	for _, e := range p.Exposures {
		if e.Port != 0 && !slices.Contains(ports, e.Port) {
			ports = append(ports, e.Port)
		}
		if e.Open {
			open[e.Zone] = append(open[e.Zone], e.Port)
		}
		if e.Open && !slices.Contains(e.Notes, "IPv6 clients are refused: it has no IPv6 backend") {
			openTo6[e.Zone] = append(openTo6[e.Zone], e.Port)
		}
	}
	if n := len(openTo6["home"]); (n == 0) != (plane == nat) {
		t.Errorf("plan says that IPv6 clients from home get to %v; the pods have IPv4 addresses", openTo6["home"])
	}
	for port := 8001; port <= 8008; port++ {
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	want := map[string][]int{"home": {8001, 8003, 8008}, "internet": {8007, 8008}, "cluster": {8002, 8003, 8008}}
	for zone, ports := range want {
		mine := slices.DeleteFunc(slices.Clone(open[zone]), func(port int) bool { return port < 8001 || port > 8008 })
		slices.Sort(mine)
		if !slices.Equal(mine, ports) {
			t.Errorf("plan: open in %s: %v, want %v", zone, mine, ports)
		}
	}
	for service, reason := range map[string]string{
		"/nowhere": "asks for no zone", "/greedy": "may not open zone internet", "/lost": `no zone named "lan2"`,
	} {
		found := false
		for _, e := range p.Exposures {
			found = found || e.Service == ns+service && !e.Open && strings.Contains(e.Reason, reason)
		}
		if !found {
			t.Errorf("plan does not say of %s that it %s", ns+service, reason)
		}
	}

	var tried sync.WaitGroup
	limit := make(chan struct{}, 16)
	for _, r := range routes {
		for _, port := range ports {
			tried.Add(1)
			limit <- struct{}{}
			go func() {
				defer func() { <-limit; tried.Done() }()
				address := net.JoinHostPort(r.address, strconv.Itoa(port))
				_, err := get(r.host, address, 2*time.Second)
				is := open
				if strings.Contains(r.address, ":") {
					is = openTo6
				}
				switch should := slices.Contains(is[r.zone], port); {
				case should && err != nil:
					t.Errorf("%s (zone %s) does not reach %s, which is open there: %v", r.host, r.zone, address, err)
				case !should && err == nil:
					t.Errorf("%s (zone %s) reaches %s, which is not open there", r.host, r.zone, address)
				case !should && !refused(err):
					t.Errorf("%s to %s: neither reached nor refused: %v", r.host, address, err)
				}
			}()
		}
	}
	tried.Wait()
	t.Logf("%d routes × %d ports agree with the plan", len(routes), len(ports))
}

// An interface that goes takes its zone with it, and brings it back; an address
// that changes is followed, and the Service's status with it.
func interfacesAreFollowed(t *testing.T, plane string) {
	ns := "public"
	apply(t, deployment(ns, "follow", "follow", "", 1)+on(plane, service(ns, "follow", "follow", "home,internet", "Local", 8020)))
	t.Cleanup(func() { remove(t, "service,deployment", "-n", ns, "follow") })
	awaitPods(t, ns, "follow")
	reach := func(host, address string) func() error {
		return func() error { _, err := get(host, address, 500*time.Millisecond); return err }
	}
	edge := func(args ...string) {
		t.Helper()
		if _, err := lab.Exec(t.Context(), "edge", args...); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 5*time.Second, "open on the Internet", reach("inet", publicAddr+":8020"))
	eventually(t, 5*time.Second, "status of both zones", func() error { return want(ingressOf(t, ns, "follow"), homeAddr+","+internetAddr) })

	mac, err := lab.Exec(t.Context(), "edge", "cat", "/sys/class/net/veth0/address")
	if err != nil {
		t.Fatal(err)
	}
	edge("ip", "link", "del", "veth0")
	eventually(t, 3*time.Second, "the zone is gone from the status", func() error { return want(ingressOf(t, ns, "follow"), homeAddr) })
	if _, err := get("home1", homeAddr+":8020", time.Second); err != nil {
		t.Errorf("the other zone suffers: %v", err)
	}
	edge("ip", "link", "add", "veth0", "link", "eth1", "address", strings.TrimSpace(mac), "type", "macvlan", "mode", "bridge")
	// As the lab has it: what goes to the home LAN goes by eth1.
	edge("ip", "addr", "add", internetAddr+"/24", "dev", "veth0", "noprefixroute")
	edge("ip", "addr", "add", "fd00:11:12::51/64", "dev", "veth0", "noprefixroute", "nodad")
	edge("ip", "link", "set", "veth0", "up")
	edge("ip", "route", "add", "10.11.12.0/24", "dev", "veth0", "src", internetAddr, "metric", "100")
	edge("ip", "route", "add", "default", "via", "10.11.12.1", "dev", "veth0", "metric", "100")
	eventually(t, 5*time.Second, "open on the Internet again", reach("inet", publicAddr+":8020"))

	edge("ip", "addr", "del", homeAddr+"/24", "dev", "eth1")
	edge("ip", "addr", "add", "10.11.12.33/24", "dev", "eth1")
	t.Cleanup(func() {
		for _, args := range [][]string{
			{"ip", "addr", "del", "10.11.12.33/24", "dev", "eth1"},
			{"ip", "addr", "add", homeAddr + "/24", "dev", "eth1"},
			{"ip", "route", "replace", "default", "via", "10.11.12.1", "dev", "eth1", "metric", "200"},
		} {
			if _, err := lab.Exec(context.Background(), "edge", args...); err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, 3*time.Second, "open at the new address", reach("home1", "10.11.12.33:8020"))
	eventually(t, 3*time.Second, "the new address in the status", func() error { return want(ingressOf(t, ns, "follow"), "10.11.12.33,"+internetAddr) })
}

func want(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}
