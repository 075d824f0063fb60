package home

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// The provider gives the home another address: what is public is public there, and the way out goes on.
func TestThePublicAddressMoves(t *testing.T) {
	serveClients(t)
	lives(t, "home1", "10.11.12.32:80")
	open(t, "home1", "10.11.12.32:80")
	old, moved := netip.MustParseAddr(site.PublicAddress), netip.MustParseAddr("203.0.113.77")
	if err := lab.MovePublicAddress(t.Context(), old, moved); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.MovePublicAddress(context.WithoutCancel(t.Context()), moved, old); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 10*time.Second, "the public controller answers there", func() error {
		a, err := get("inet", "203.0.113.77:80")
		if err == nil && !strings.HasPrefix(a.Client, site.InternetClient+":") {
			err = fmt.Errorf("it sees %s", a.Client)
		}
		return err
	})
	eventually(t, 10*time.Second, "the way out goes on", func() error {
		out, err := lab.Exec(t.Context(), "nas", "curl", "-sS", "-m", "2", "http://203.0.113.10:7777/")
		if err == nil && out != moved.String() {
			err = fmt.Errorf("the server sees %q", out)
		}
		return err
	})
}

// running says whether gatehouse takes an interface for one that passes packets.
func running(t *testing.T, name string) bool {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Dialer("edge")}}
	resp, err := client.Get("http://127.0.0.1:9180/status.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s struct {
		Links []struct {
			Name string `json:"name"`
			Up   bool   `json:"up"`
		} `json:"links"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Links {
		if l.Name == name {
			return l.Up
		}
	}
	t.Fatalf("the status does not know %s", name)
	return false
}

// The cable to the home LAN is pulled and put back, and the home router gives another address for what comes from the
// Internet: doors, rules, status and the way out are there, and what home has is as it was.
func TestTheLeaseMoves(t *testing.T) {
	serveClients(t)
	lives(t, "home1", "10.11.12.32:80")
	lives(t, "nas", "10.0.0.1:80")
	open(t, "nas", "10.0.0.1:80")
	old, moved := netip.MustParseAddr(site.EdgeExposed), netip.MustParseAddr("10.11.12.61")
	move := func(from, to netip.Addr) error {
		if err := lab.MoveExposed(t.Context(), from, to); err != nil {
			return err
		}
		if err := lab.LinkDown("edge", "eth1"); err != nil {
			return err
		}
		eventually(t, 10*time.Second, "the cable is seen to be pulled", func() error {
			if running(t, "veth0") {
				return errors.New("it is not")
			}
			return nil
		})
		return lab.LinkUp("edge", "eth1")
	}
	settled := func(addr netip.Addr) {
		t.Helper()
		eventually(t, 30*time.Second, "veth0 has "+addr.String()+" alone", func() error {
			out := shell(t, "edge", "ip -4 -br addr show dev veth0")
			if !strings.Contains(out, " "+addr.String()+"/24") || strings.Count(out, "/24") != 1 {
				return fmt.Errorf("it has %s", out)
			}
			return nil
		})
		eventually(t, 10*time.Second, "the public controller answers", func() error {
			a, err := get("inet", "203.0.113.1:80")
			if err == nil && !strings.HasPrefix(a.Client, site.InternetClient+":") {
				err = fmt.Errorf("it sees %s", a.Client)
			}
			return err
		})
		eventually(t, 10*time.Second, "the way out goes on", func() error {
			out, err := lab.Exec(t.Context(), "nas", "curl", "-sS", "-m", "2", "http://203.0.113.10:7777/")
			if err == nil && out != site.PublicAddress {
				err = fmt.Errorf("the server sees %q", out)
			}
			return err
		})
		eventually(t, 10*time.Second, "the status of the Service says where it is", func() error {
			out, err := lab.Kubectl(t.Context(), "get", "service", "-n", "ingress-public", "nginx", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
			if err == nil && !strings.Contains(" "+out+" ", " "+addr.String()+" ") {
				err = fmt.Errorf("it says %s", out)
			}
			return err
		})
		eventually(t, 10*time.Second, "home is as it was", func() error {
			_, err := get("home1", "10.11.12.32:80")
			return err
		})
		if open, err := passes("inet", site.APIServer); open || err != nil {
			t.Errorf("the Internet reaches the API server: %v %v", open, err)
		}
	}
	for _, way := range [][2]netip.Addr{{old, moved}, {moved, old}} {
		if err := move(way[0], way[1]); err != nil {
			t.Fatal(err)
		}
		settled(way[1])
	}
}

// The home router gives the box another address at home: from the moment that the interface has it, doors, names and the
// status of Services follow, while what the cluster has of the same Services goes on.
func TestTheHomeLeaseMoves(t *testing.T) {
	serveClients(t)
	lives(t, "nas", "10.0.0.1:80")
	open(t, "nas", "10.0.0.1:80")
	old, moved := netip.MustParseAddr(site.EdgeHome), netip.MustParseAddr("10.11.12.42")
	for _, way := range [][2]netip.Addr{{old, moved}, {moved, old}} {
		if err := lab.MoveHome(t.Context(), way[0], way[1]); err != nil {
			t.Fatal(err)
		}
		if err := lab.LinkDown("edge", "eth1"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the cable is seen to be pulled", func() error {
			if running(t, "eth1") {
				return errors.New("it is not")
			}
			return nil
		})
		if err := lab.LinkUp("edge", "eth1"); err != nil {
			t.Fatal(err)
		}
		addr := way[1].String()
		eventually(t, 30*time.Second, "eth1 has "+addr+" alone", func() error {
			out := shell(t, "edge", "ip -4 -br addr show dev eth1")
			if !strings.Contains(out, " "+addr+"/24") || strings.Count(out, "/24") != 1 {
				return fmt.Errorf("it has %s", out)
			}
			return nil
		})
		has := time.Now()
		eventually(t, 5*time.Second, "the controller at home answers there", func() error {
			_, err := get("home1", addr+":80")
			return err
		})
		t.Logf("open at %s after %s", addr, time.Since(has).Round(time.Millisecond))
		eventually(t, 5*time.Second, "names stand for it", func() error {
			out := shell(t, "home1", "dig +tries=1 +time=1 +noall +comments +answer @"+addr+" git.home.example || true")
			if got := answersOf(out); got != addr {
				return fmt.Errorf("%q:\n%s", got, out)
			}
			return nil
		})
		t.Logf("named after %s", time.Since(has).Round(time.Millisecond))
		eventually(t, 5*time.Second, "the status of the Service says so", func() error {
			out, err := lab.Kubectl(t.Context(), "get", "service", "-n", "ingress-home", "nginx", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
			if err == nil && !strings.Contains(" "+out+" ", " "+addr+" ") {
				err = fmt.Errorf("it says %s", out)
			}
			return err
		})
		t.Logf("in the status after %s", time.Since(has).Round(time.Millisecond))
		if open, err := passes("home1", addr+":22"); !open || err != nil {
			t.Errorf("the firewall lets home not in for ssh: %v %v", open, err)
		}
	}
}

// The provider gives the home another IPv6 prefix: what the box opens to the Internet goes by it.
func TestThePrefixMoves(t *testing.T) {
	serveClients(t)
	lives(t, "home1", "[fd00:11:12::32]:80")
	open(t, "home1", "10.11.12.32:80")
	old, moved := netip.MustParsePrefix(site.HomePrefix6), netip.MustParsePrefix("2001:db8:11:99::/64")
	for _, way := range [][2]netip.Prefix{{old, moved}, {moved, old}} {
		if err := lab.MovePrefix(t.Context(), way[0], way[1]); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the way out goes by "+way[1].String(), func() error {
			out, err := lab.Exec(t.Context(), "nas", "curl", "-sS", "-m", "2", "http://[2001:db8:113::10]:7777/")
			if err != nil {
				return err
			}
			if addr, err := netip.ParseAddr(out); err != nil || !way[1].Contains(addr) {
				return fmt.Errorf("the server sees %q", out)
			}
			return nil
		})
		eventually(t, 10*time.Second, "the public controller answers there", func() error {
			for field := range strings.FieldsSeq(shell(t, "edge", "ip -6 -br addr show dev veth0 scope global -deprecated")) {
				if addr, err := netip.ParsePrefix(field); err == nil && way[1].Contains(addr.Addr()) {
					a, err := get("inet", "["+addr.Addr().String()+"]:80")
					if err == nil && !strings.HasPrefix(a.Client, "["+site.InternetClient6+"]:") {
						err = fmt.Errorf("it sees %s", a.Client)
					}
					return err
				}
			}
			return errors.New("veth0 has no address of the prefix")
		})
		if open, err := passes("inet", "[fd00:10::10]:6443"); open || err != nil {
			t.Errorf("the Internet reaches the API server: %v %v", open, err)
		}
	}
}

// lives has a host keep one connection, and ask over it, until the test ends: no answer may be missing, and there may be
// no second connection.
func lives(t *testing.T, host, address string) {
	t.Helper()
	dials := 0
	dial := lab.Dialer(host)
	// Of one connection, or a second one would be made whenever the first is a moment late to be free again.
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return dial(ctx, network, address)
	}}
	client := http.Client{Timeout: 15 * time.Second, Transport: transport}
	until(t, func() error {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return errors.Join(err, resp.Body.Close())
	}, func(asked int, err error) {
		transport.CloseIdleConnections()
		if err != nil || dials != 1 || asked < 2 {
			t.Errorf("a connection of %s to %s: %d answers over %d connections, then %v", host, address, asked, dials, err)
		}
	})
}

// open has a host make connections one after the other until the test ends: none may fail.
func open(t *testing.T, host, address string) {
	t.Helper()
	until(t, func() error {
		_, err := get(host, address)
		return err
	}, func(asked int, err error) {
		if err != nil || asked < 2 {
			t.Errorf("connections of %s to %s: %d succeed, then %v", host, address, asked, err)
		}
	})
}

// until does something again and again in the background, until the test ends or it fails.
func until(t *testing.T, do func() error, end func(done int, err error)) {
	t.Helper()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	done := 1
	var failed error
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if failed = do(); failed != nil {
				return
			}
			done++
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
		end(done, failed)
	})
}
