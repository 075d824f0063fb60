package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// dnsConfig has gatehouse answer questions in all zones. Nobody else is asked.
const dnsConfig = config + `dns:
  zones: [home, internet, cluster]
  domain: home.example
  ttl: 1s
  upstreams: []
  records:
    - {name: nas, address: 10.0.0.101}
    - {name: here, address: 10.11.12.9, zones: [home]}
    - {name: alias, cname: nas}
  allow: {example.org: {}}
`

// Where each zone asks, and who is in it. A host at home that asks the address of the Internet's interface comes in there.
var dnsServers = map[string]struct{ host, addr string }{
	"home": {"home1", homeAddr}, "internet": {"home1", internetAddr}, "cluster": {"w1", clusterAddr},
}

// dig asks for a name in a zone; it returns the answers, sorted, or the code if it is not NOERROR.
func dig(t *testing.T, zone, typ, name string) string {
	t.Helper()
	at := dnsServers[zone]
	out, err := lab.Exec(t.Context(), at.host, "dig", "+tries=1", "+time=2", "+noall", "+comments", "+answer", "@"+at.addr, "-t", typ, name)
	if err != nil {
		return err.Error()
	}
	var answers []string
	for line := range strings.Lines(out) {
		if _, code, ok := strings.Cut(line, "status: "); ok {
			if code, _, _ = strings.Cut(code, ","); code != "NOERROR" {
				return code
			}
		}
		if fields := strings.Fields(line); len(fields) > 4 && !strings.HasPrefix(line, ";") && fields[3] == typ {
			answers = append(answers, strings.Join(fields[4:], " "))
		}
	}
	slices.Sort(answers)
	return strings.Join(answers, ", ")
}

// knows waits until zones are answered so: "home: 10.0.0.1".
func knows(t *testing.T, limit time.Duration, typ, name string, want map[string]string) {
	t.Helper()
	eventually(t, limit, typ+" "+name, func() error {
		for zone, want := range want {
			if got := dig(t, zone, typ, name); got != want {
				return fmt.Errorf("zone %s is answered %q, want %q", zone, got, want)
			}
		}
		return nil
	})
}

// useFile has the running gatehouse take another file, and the first one again afterwards.
func useFile(t *testing.T, content string) {
	t.Helper()
	write := func(content string) error { return os.WriteFile(configFile, []byte(content), 0o644) }
	t.Cleanup(func() {
		if err := write(config); err != nil {
			t.Error(err)
		}
	})
	if err := write(content); err != nil {
		t.Fatal(err)
	}
}

// gatewayCRDs are the files with what the API server has to know of the Gateway API.
func gatewayCRDs(t *testing.T) (files []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "sigs.k8s.io/gateway-api")
	cmd.Dir = "testdata/gateway-api"
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes"} {
		files = append(files, filepath.Join(module.Dir, "config/crd/standard/gateway.networking.k8s.io_"+resource+".yaml"))
	}
	return files
}

func addressList(addrs, key string) string {
	var items []string
	for a := range strings.SplitSeq(addrs, ",") {
		items = append(items, fmt.Sprintf("{%q: %q}", key, a))
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// TestDNSNames has each zone know what it can reach, by whatever gives it a name.
func TestDNSNames(t *testing.T) {
	useFile(t, dnsConfig)
	knows(t, 10*time.Second, "A", "nas.home.example", map[string]string{"home": "10.0.0.101", "internet": "10.0.0.101", "cluster": "10.0.0.101"})
	const ns = "public" // which may be open to the Internet
	t.Cleanup(func() { remove(t, "service,deployment,ingress", "-n", ns, "dns-web") })

	t.Run("machines", func(t *testing.T) {
		knows(t, 5*time.Second, "A", "here.home.example", map[string]string{"home": "10.11.12.9", "internet": "NXDOMAIN", "cluster": "NXDOMAIN"})
		knows(t, 5*time.Second, "CNAME", "alias.home.example", map[string]string{"home": "nas.home.example."})
		knows(t, 5*time.Second, "A", "gatehouse.home.example", map[string]string{"home": homeAddr, "internet": internetAddr, "cluster": clusterAddr})
		node := kubectl(t, "get", "node", "w2", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		first, _, _ := strings.Cut(node, " ")
		knows(t, 5*time.Second, "A", "w2.home.example", map[string]string{"cluster": first})
		knows(t, 5*time.Second, "PTR", "9.12.11.10.in-addr.arpa", map[string]string{"home": "here.home.example."})
	})

	web := strings.Replace(service(ns, "dns-web", "dns-web", "home,internet", "Local", 8170), "ports: [{port", "ports: [{name: http, port", 1)
	apply(t, deployment(ns, "dns-web", "dns-web", "", 1)+web)
	awaitPods(t, ns, "dns-web")
	both := map[string]string{"home": homeAddr, "internet": internetAddr, "cluster": "NXDOMAIN"}

	t.Run("a Service", func(t *testing.T) {
		const name = "dns-web.public.cluster.home.example"
		knows(t, 15*time.Second, "A", name, both)
		knows(t, 5*time.Second, "SRV", "_http._tcp."+name, map[string]string{"home": "0 0 8170 " + name + ".", "cluster": "NXDOMAIN"})
		// It is open, and so has a name, a moment before its pods are known to answer.
		eventually(t, 10*time.Second, "it is there by the address that it has", func() error {
			_, err := lab.Exec(t.Context(), "home1", "curl", "-sS", "-m", "5", "--resolve", name+":8170:"+dig(t, "home", "A", name), "http://"+name+":8170/")
			return err
		})
		// Closed in a zone, it is not known there any more.
		kubectl(t, "annotate", "--overwrite", "service", "-n", ns, "dns-web", "gatehouse.e13.dev/zones=home")
		knows(t, 10*time.Second, "A", name, map[string]string{"home": homeAddr, "internet": "NXDOMAIN"})
		kubectl(t, "annotate", "--overwrite", "service", "-n", ns, "dns-web", "gatehouse.e13.dev/zones=home,internet")
		knows(t, 10*time.Second, "A", name, both)
	})

	t.Run("annotations", func(t *testing.T) {
		kubectl(t, "annotate", "--overwrite", "service", "-n", ns, "dns-web", "gatehouse.e13.dev/dns-names=www.home.example,*.shop.home.example,nas.home.example,bank.example",
			"external-dns.alpha.kubernetes.io/hostname=www.example.org,elsewhere.example")
		for _, name := range []string{"www.home.example", "any.shop.home.example"} {
			knows(t, 10*time.Second, "A", name, both)
		}
		knows(t, 5*time.Second, "A", "www.example.org", map[string]string{"home": homeAddr, "internet": internetAddr})
		knows(t, 5*time.Second, "A", "nas.home.example", map[string]string{"home": "10.0.0.101"})
		for _, name := range []string{"bank.example", "elsewhere.example"} {
			if got := dig(t, "home", "A", name); got == homeAddr {
				t.Errorf("%s is %s", name, got)
			}
		}
		eventually(t, 10*time.Second, "the owner is told", func() error {
			events := eventsOf(t, ns, "dns-web")
			for _, want := range []string{"DNSNameNotAllowed: the name nas.home.example is that of the record", "DNSNameNotAllowed: the name bank.example is in no domain of this site"} {
				if !strings.Contains(events, want) {
					return fmt.Errorf("no %q in\n%s", want, events)
				}
			}
			if strings.Contains(events, "elsewhere") {
				t.Errorf("it is told of what is not meant for gatehouse:\n%s", events)
			}
			return nil
		})
	})

	// A controller of Ingresses is behind the Service: it has the Service's port 80, and writes its addresses.
	kubectl(t, "patch", "service", "-n", ns, "dns-web", "--type=json", "-p", `[{"op":"replace","path":"/spec/ports/0/port","value":80}]`)
	addrs := ""
	eventually(t, 10*time.Second, "the Service has its addresses", func() error {
		if addrs = ingressOf(t, ns, "dns-web"); addrs == "" {
			return fmt.Errorf("none")
		}
		return nil
	})

	t.Run("Ingress", func(t *testing.T) {
		apply(t, fmt.Sprintf(`---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: dns-web, namespace: %s}
spec:
  ingressClassName: public
  rules: [{host: ingress.home.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: any, port: {number: 80}}}}]}}]
`, ns))
		if got := dig(t, "home", "A", "ingress.home.example"); got != "NXDOMAIN" {
			t.Errorf("before it is served: %s", got)
		}
		kubectl(t, "patch", "ingress", "-n", ns, "dns-web", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":`+addressList(addrs, "ip")+`}}}`)
		knows(t, 10*time.Second, "A", "ingress.home.example", both)
	})

	t.Run("Gateway API", func(t *testing.T) {
		for _, file := range gatewayCRDs(t) {
			kubectl(t, "apply", "--server-side", "-f", file)
			t.Cleanup(func() { remove(t, "-f", file) })
		}
		kubectl(t, "wait", "--for=condition=Established", "crd", "gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io")
		manifests := fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: %[1]s}
spec:
  gatewayClassName: lab
  listeners: [{name: http, port: 80, protocol: HTTP, hostname: "*.home.example"}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: %[1]s}
spec:
  parentRefs: [{name: edge}]
  hostnames: [route.home.example, route.example.org]
`, ns)
		eventually(t, 10*time.Second, "the API server has them", func() error { return lab.Apply(t.Context(), manifests) })
		kubectl(t, "patch", "gateway", "-n", ns, "edge", "--subresource=status", "--type=merge", "-p", `{"status":{"addresses":`+addressList(addrs, "value")+`}}`)
		accepted := func(status string) string {
			return fmt.Sprintf(`{"status":{"parents":[{"parentRef":{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"edge"},"controllerName":"lab.example/test",
				"conditions":[{"type":"Accepted","status":%q,"reason":"Test","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}]}}`, status)
		}
		patch := func(status string) {
			kubectl(t, "patch", "httproute", "-n", ns, "web", "--subresource=status", "--type=merge", "-p", accepted(status))
		}
		patch("True")
		// They are looked for now and then: the API server had none when gatehouse began.
		knows(t, 30*time.Second, "A", "route.home.example", both)
		patch("False")
		knows(t, 10*time.Second, "A", "route.home.example", map[string]string{"home": "NXDOMAIN"})
		patch("True")
		knows(t, 10*time.Second, "A", "route.home.example", both)
	})
	if problems := fmt.Sprint(statusNow(t).Problems); strings.Contains(problems, "hosts of Ingresses") {
		t.Errorf("problems: %s", problems)
	}
}

// TestDNSNamesWithOldRights has everything but the hosts of Ingresses go on with a role from before there were any.
func TestDNSNamesWithOldRights(t *testing.T) {
	restore := func(ctx context.Context) error {
		_, err := lab.Kubectl(ctx, "apply", "-f", "../../deploy/rbac.yaml")
		return err
	}
	var role struct {
		Rules []struct {
			APIGroups []string `json:"apiGroups"`
		} `json:"rules"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, "get", "clusterrole", "gatehouse", "-o", "json")), &role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := restore(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for i, rule := range slices.Backward(role.Rules) {
		if strings.HasSuffix(rule.APIGroups[0], "networking.k8s.io") {
			kubectl(t, "patch", "clusterrole", "gatehouse", "--type=json", "-p", fmt.Sprintf(`[{"op":"remove","path":"/rules/%d"}]`, i))
		}
	}
	ns := namespace(t)
	useFile(t, dnsConfig)
	refused := func() error {
		for _, p := range statusNow(t).Problems {
			if strings.HasPrefix(p.What, "the hosts of Ingresses and routes are not known: not allowed to list ingresses") && strings.HasSuffix(p.Remedy, "everything else goes on") {
				return nil
			}
		}
		return fmt.Errorf("no problem: %+v", statusNow(t).Problems)
	}
	eventually(t, 15*time.Second, "a problem tells", refused)
	apply(t, deployment(ns, "web", "web", "", 1)+service(ns, "web", "web", "home", "Local", 8175))
	awaitPods(t, ns, "web")
	eventually(t, 10*time.Second, "open", opened("home1", homeAddr+":8175"))
	knows(t, 5*time.Second, "A", "web."+ns+".cluster.home.example", map[string]string{"home": homeAddr})
	if s := statusNow(t); !s.Cluster.Synced || s.Cluster.Error != "" && !strings.Contains(s.Cluster.Error, "hosts of Ingresses") {
		t.Errorf("the cluster: %+v", s.Cluster)
	}
	if err := restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "they are read once they are given", func() error {
		if refused() == nil {
			return fmt.Errorf("the problem is still there")
		}
		return nil
	})
}
