package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// echoPods is a manifest of lab/echo pods: they answer each datagram with their name.
func echoPods(namespace, name, node string, replicas int) string {
	return strings.NewReplacer("image: lab/web", "image: lab/echo", "httpGet: {path: /, port: 8080}", "tcpSocket: {port: 8080}").
		Replace(deployment(namespace, name, "echo", node, replicas, "--linger", "0s"))
}

// udpService is a manifest of a UDP Service of them.
func udpService(namespace, name, target string, port int, more string) string {
	text := strings.Replace(service(namespace, name, "echo", "home", "Local", port), "ports: [{", "ports: [{protocol: UDP, ", 1)
	text = strings.Replace(text, "annotations: {", "annotations: {gatehouse.e13.dev/target: "+target+", ", 1)
	return strings.Replace(text, "spec:\n", "spec:\n"+more, 1)
}

// asker is a client port that speaks to one address. It hears that address only: an answer from another one is none.
func asker(t *testing.T, host, address string) net.Conn {
	t.Helper()
	conn, err := lab.Dialer(host)(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func question(conn net.Conn, patience time.Duration) (pod string, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("who?")); err != nil {
		return "", err
	}
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	if n == 0 && err == nil {
		err = errors.New("an empty answer")
	}
	return strings.TrimSpace(string(buf[:n])), err
}

// answers is a condition for eventually.
func answers(t *testing.T, host, address string) func() error {
	return func() error {
		_, err := question(asker(t, host, address), 200*time.Millisecond)
		return err
	}
}

// unanswered asks where no answer may come from, and says how that looks.
func unanswered(conn net.Conn) (how string, err error) {
	switch pod, err := question(conn, 300*time.Millisecond); {
	case err == nil:
		return "", fmt.Errorf("%s answered", pod)
	case errors.Is(err, errConnRefused):
		return "ICMP port unreachable", nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence", nil
	default:
		return "", err
	}
}

// UDP Services through node ports and straight to the pods: each pod gets its
// share of the sessions, answers come from the address that was asked, and
// nobody else is let in. A Service that is deleted is closed within a second.
func udpServices(t *testing.T, plane string) {
	const sessions, pods = 1500, 3
	ns := namespace(t)
	apply(t, echoPods(ns, "one", "w1", 1)+echoPods(ns, "two", "w2", 2))
	awaitPods(t, ns, "one", "two")
	for i, target := range []string{"nodePort", "pod"} {
		t.Run(target, func(t *testing.T) {
			name, port := "echo-"+strings.ToLower(target), 8400+i
			at := net.JoinHostPort(homeAddr, strconv.Itoa(port))
			apply(t, on(plane, udpService(ns, name, target, port, "  loadBalancerSourceRanges: [10.11.12.101/32]\n")))
			// Nobody asks before that: a node that refuses because kube-proxy does not know yet is left alone for a second.
			eventually(t, 10*time.Second, "every pod is in the shares", func() error { return allUp(t, ns+"/"+name, pods) })
			eventually(t, 10*time.Second, "open", answers(t, "home1", at))

			counts := map[string]int{}
			err := lab.Do("home1", func() error {
				for range sessions {
					conn, err := net.Dial("udp", at)
					if err != nil {
						return err
					}
					pod, err := question(conn, 2*time.Second)
					conn.Close()
					if err != nil {
						return err
					}
					counts[pod]++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			printShares(t, fmt.Sprintf("%d sessions, target %s", sessions, target), counts)
			equal(t, counts, pods)

			t.Run("answers come from the address asked", func(t *testing.T) {
				var socket net.PacketConn
				err := lab.Do("home1", func() (err error) {
					socket, err = net.ListenPacket("udp4", ":0")
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				for _, address := range []string{homeAddr, clusterAddr, homeAddr} {
					to := &net.UDPAddr{IP: net.ParseIP(address), Port: port}
					_ = socket.SetDeadline(time.Now().Add(2 * time.Second))
					_, err := socket.WriteTo([]byte("who?"), to)
					buf := make([]byte, 200)
					var from net.Addr
					if err == nil {
						_, from, err = socket.ReadFrom(buf)
					}
					if err != nil || from.String() != to.String() {
						t.Errorf("%s was asked, and %v answered: %v", to, from, err)
					}
				}
			})
			t.Run("zones and source ranges are walls", func(t *testing.T) {
				seen := map[string]bool{}
				for _, r := range append(slices.Clone(routes), route{"home2", homeAddr, "source ranges"}, route{"home2", clusterAddr, "source ranges"}) {
					if r.zone == "home" || strings.Contains(r.address, ":") {
						continue
					}
					how, err := unanswered(asker(t, r.host, fmt.Sprintf("%s:%d", r.address, port)))
					if err != nil {
						t.Errorf("%s to %s, %s: %v", r.host, r.address, r.zone, err)
					}
					seen[r.zone+": "+how] = true
				}
				t.Log("what meets a wall:", strings.Join(slices.Sorted(maps.Keys(seen)), "; "))
			})
			t.Run("closed within a second", func(t *testing.T) {
				old := asker(t, "home1", at)
				if _, err := question(old, 2*time.Second); err != nil {
					t.Fatal(err)
				}
				kubectl(t, "delete", "service", "-n", ns, name)
				took := eventually(t, time.Second, "nobody answers", func() error {
					_, err := question(old, 100*time.Millisecond)
					if err == nil {
						return errors.New("it is answered")
					}
					// A node port that is gone refuses as well, if one still asks there.
					if f, open := openAt(t, port); open {
						return fmt.Errorf("%s is open", f.Name)
					}
					return nil
				})
				how, err := unanswered(old)
				if err != nil {
					t.Errorf("a client that was there: %v", err)
				}
				fresh, err := unanswered(asker(t, "home1", at))
				if err != nil {
					t.Errorf("a new client: %v", err)
				}
				t.Logf("closed %d ms after kubectl delete returned; a client that was there meets %s, a new one %s", took.Milliseconds(), how, fresh)
			})
		})
	}
}

// A client whose pod goes away reaches another one from the same port: what has
// gone, and does not answer, is not spoken to for ever.
func udpClientOfAPodThatGoes(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, echoPods(ns, "one", "w1", 1)+echoPods(ns, "two", "w2", 1))
	awaitPods(t, ns, "one", "two")
	for i, target := range []string{"nodePort", "pod"} {
		t.Run(target, func(t *testing.T) {
			kubectl(t, "scale", "deployment", "-n", ns, "one", "--replicas", "1")
			awaitPods(t, ns, "one")
			name, port := "echo-"+strings.ToLower(target), 8410+i
			at := net.JoinHostPort(homeAddr, strconv.Itoa(port))
			apply(t, on(plane, udpService(ns, name, target, port, "")))
			eventually(t, 10*time.Second, "open", answers(t, "home1", at))
			eventually(t, 10*time.Second, "both pods are in the shares", func() error { return allUp(t, ns+"/"+name, 2) })
			var client net.Conn
			eventually(t, 10*time.Second, "a client of the pod that will go", func() error {
				conn := asker(t, "home1", at)
				pod, err := question(conn, time.Second)
				if err == nil && !strings.HasPrefix(pod, "one") {
					err = fmt.Errorf("%s answers", pod)
				}
				client = conn
				return err
			})
			kubectl(t, "scale", "deployment", "-n", ns, "one", "--replicas", "0")
			var asked, unheard int
			took := eventually(t, 10*time.Second, "another pod answers", func() error {
				asked++
				pod, err := question(client, 100*time.Millisecond)
				if err == nil && strings.HasPrefix(pod, "one") {
					err = fmt.Errorf("%s still answers", pod)
				} else if err != nil {
					unheard++
				}
				return err
			})
			t.Logf("the other pod answers %d ms after kubectl scale returned; %d of %d questions had no answer", took.Milliseconds(), unheard, asked)
			for range 20 {
				if pod, err := question(client, time.Second); err != nil || !strings.HasPrefix(pod, "two") {
					t.Fatalf("afterwards: %q %v", pod, err)
				}
			}
		})
	}
}

// A client that has asked in vain, from the port that it goes on to ask from, is
// answered when the Service is opened: the kernel does not go on to send it to
// where nobody was.
func udpClientThatWasThereBefore(t *testing.T, plane string) {
	const port = 8415
	ns := namespace(t)
	apply(t, echoPods(ns, "echo", "", 1))
	awaitPods(t, ns, "echo")
	at := net.JoinHostPort(homeAddr, strconv.Itoa(port))
	early := asker(t, "home1", at)
	for range 3 {
		if _, err := unanswered(early); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, on(plane, udpService(ns, "echo", "pod", port, "")))
	took := eventually(t, 5*time.Second, "the early client is answered", func() error {
		_, err := question(early, 100*time.Millisecond)
		return err
	})
	t.Logf("answered %d ms after kubectl apply returned", took.Milliseconds())
}
