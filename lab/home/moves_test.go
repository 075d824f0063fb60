package home

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
