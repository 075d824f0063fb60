package home

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// Both controllers are open where they ask to be, every pod has its share of the connections and sees who makes them.
func TestServicesAreOpenWhereTheyAskToBe(t *testing.T) {
	for _, tt := range []struct{ host, address, client, namespace string }{
		{"inet", "203.0.113.1:80", site.InternetClient, "ingress-public"},
		// Who is in the pods' own network gets answers past the box, unless it asks in its own name.
		{"nas", "10.0.0.1:80", site.EdgeCluster, "ingress-public"},
		{"home1", "10.11.12.32:80", "10.11.12.101", "ingress-home"},
		{"home1", "[fd00:11:12::32]:80", "fd00:11:12::101", "ingress-home"},
		{"nas", "[fd00:10::1]:80", site.EdgeCluster6, "ingress-public"},
	} {
		t.Run(tt.host+" "+tt.address, func(t *testing.T) {
			of := podsOf(t, tt.namespace)
			eventually(t, 20*time.Second, "it is open, and all pods take part", func() error {
				seen := map[string]bool{}
				for range 100 {
					a, err := get(tt.host, tt.address)
					if err != nil {
						return err
					}
					seen[a.Pod] = true
				}
				if len(seen) != len(of) {
					return fmt.Errorf("answers come from %d pods", len(seen))
				}
				return nil
			})
			const n = 600
			shares := map[string]int{}
			for range n {
				a, err := get(tt.host, tt.address)
				if err != nil {
					t.Fatal(err)
				}
				if client := netip.MustParseAddrPort(a.Client).Addr().String(); client != tt.client {
					t.Fatalf("%s sees the client %s, not %s", a.Pod, client, tt.client)
				}
				shares[a.Pod]++
			}
			// Five standard deviations: one run in a million of a fair choice is further away.
			fair := float64(n) / pods
			far := 5 * math.Sqrt(fair*(1-1.0/pods))
			for _, pod := range of {
				if got := float64(shares[pod]); math.Abs(got-fair) > far {
					t.Errorf("%s got %.0f of %d connections, want %.0f ± %.0f: %v", pod, got, n, fair, far, shares)
				}
				delete(shares, pod)
			}
			if len(shares) > 0 {
				t.Errorf("somebody else's pods answer: %v", shares)
			}
		})
	}
}

// Who may not, does not get through: by no address, neither the box's nor that of the machine behind it, though the
// home router hands on whatever comes from the Internet.
func TestTheRestIsClosed(t *testing.T) {
	pod := podAddr(t, "ingress-home")
	var waits sync.WaitGroup
	for _, tt := range []struct {
		host  string
		addrs []string
		open  bool
	}{
		{"home1", []string{site.APIServer}, true},
		{"w1", []string{site.APIServer}, true},
		{"nas", []string{site.APIServer}, true},
		{"inet", []string{site.APIServer, "203.0.113.1:6443", "10.11.12.51:6443", "10.11.12.32:6443", "10.0.0.1:6443"}, false},

		{"w1", []string{site.Storage + ":2049"}, true},
		{"home1", []string{site.Storage + ":2049", "10.0.0.1:2049", "10.11.12.32:2049"}, false},
		{"inet", []string{site.Storage + ":2049", "203.0.113.1:2049"}, false},

		{"inet", []string{pod + ":8080", "203.0.113.1:22", "203.0.113.1:53", "203.0.113.1:9180"}, false},
		{"home1", []string{pod + ":8080", "10.0.0.101:10250", "10.0.0.10:22"}, false},
		{"home1", []string{"10.11.12.32:22", "10.11.12.32:53"}, true},
		{"w1", []string{"10.0.0.1:22", "10.11.12.101:80", "10.11.12.1:80", "10.11.12.32:22"}, false},
	} {
		for _, addr := range tt.addrs {
			waits.Go(func() {
				if open, err := passes(tt.host, addr); err != nil || open != tt.open {
					t.Errorf("%s reaches %s: %v, want %v (%v)", tt.host, addr, open, tt.open, err)
				}
			})
		}
	}
	waits.Wait()
	// By whatever address of the box: what answers is what is open where the packet comes from.
	for _, tt := range []struct{ host, address, namespace string }{
		{"inet", "10.11.12.32:80", "ingress-public"}, {"inet", "10.0.0.1:80", "ingress-public"}, {"home1", "10.0.0.1:80", "ingress-home"},
	} {
		of := podsOf(t, tt.namespace)
		if a, err := get(tt.host, tt.address); err == nil && !slices.Contains(of, a.Pod) {
			t.Errorf("%s reaches %s at %s, which is not of %s", tt.host, a.Pod, tt.address, tt.namespace)
		}
	}
	if out, err := lab.Exec(t.Context(), "home1", lab.Dir()+"/bin/kubectl", "--kubeconfig", lab.AdminKubeconfig(), "get", "nodes", "-o", "name"); err != nil || !strings.Contains(out, "node/w3") {
		t.Errorf("kubectl at home: %s %v", out, err)
	}
	if name := shell(t, "w1", "{ sleep 1; } | nc -w 2 10.0.0.20 2049"); name != "nas" {
		t.Errorf("the storage box says %q to a worker", name)
	}
}

func podsOf(t *testing.T, namespace string) []string {
	t.Helper()
	names, err := lab.Kubectl(t.Context(), "get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(names)
}

func podAddr(t *testing.T, namespace string) string {
	t.Helper()
	addr, err := lab.Kubectl(t.Context(), "get", "pods", "-n", namespace, "-o", "jsonpath={.items[0].status.podIP}")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// What asks from the cluster gets into the Internet by the address of this box on the Internet's side, and from there
// by the home router's; IPv6 by the box's own, since the cluster's addresses are nobody's in the Internet.
func TestTheWayOut(t *testing.T) {
	serveClients(t)
	exposed6 := ""
	eventually(t, 10*time.Second, "veth0 has an IPv6 address", func() error {
		for field := range strings.FieldsSeq(shell(t, "edge", "ip -6 -br addr show dev veth0 scope global")) {
			if strings.HasPrefix(field, "2001:db8:11:12:") {
				exposed6 = strings.Split(field, "/")[0]
				return nil
			}
		}
		return fmt.Errorf("none of what the home router advertises: %s", shell(t, "edge", "ip -6 addr show dev veth0"))
	})
	for _, host := range []string{"ingress-home/" + podsOf(t, "ingress-home")[0], "nas", "cp"} {
		for url, want := range map[string]string{"http://203.0.113.10:7777/": site.PublicAddress, "http://[2001:db8:113::10]:7777/": exposed6} {
			eventually(t, 10*time.Second, host+" reaches "+url, func() error {
				out, err := lab.Exec(t.Context(), host, "curl", "-sS", "-m", "2", url)
				if err == nil && out != want {
					err = fmt.Errorf("the server sees %q, not %q", out, want)
				}
				return err
			})
		}
	}
}

// serveClients has a server in the Internet that tells everybody who they are.
func serveClients(t *testing.T) {
	t.Helper()
	var listener net.Listener
	err := lab.Do("inet", func() (err error) {
		listener, err = net.Listen("tcp", ":7777")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap())
	})}
	go func() { _ = server.Serve(listener) }() // until it is closed, which is no failure
	t.Cleanup(func() { _ = server.Close() })
}

// A power cut takes the box and the control plane: the box comes back alone, from its disk, and a worker that is
// switched on then gets the address and the name that it had; what was open is open.
func TestAfterAPowerCut(t *testing.T) {
	ctx := t.Context()
	for _, component := range []string{"kube-apiserver", "dhcp-w2", "gatehouse"} {
		if err := lab.Kill(ctx, component); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := lab.Start(context.WithoutCancel(ctx), "kube-apiserver"); err != nil {
			t.Error(err)
		}
	})
	shell(t, "w2", "rm /run/lease; ip -4 addr flush dev eth0")
	for _, component := range []string{"gatehouse", "dhcp-w2"} {
		if err := lab.Start(ctx, component); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, "w2 has its address", func() error {
		told, err := lab.LeaseOf("w2")
		if err == nil && (told["ip"] != "10.0.0.102" || told["hostname"] != "w2") {
			err = fmt.Errorf("it is told %v", told)
		}
		return err
	})
	eventually(t, 20*time.Second, "the public controller answers", func() error {
		_, err := get("inet", "203.0.113.1:80")
		return err
	})
	if open, err := passes("inet", site.APIServer); open || err != nil {
		t.Errorf("the Internet reaches the API server's machine: %v %v", open, err)
	}
}
