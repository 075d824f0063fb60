package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/netnstest"
)

const advertLimit = 20 * time.Second

// advertsSite is a machine that advertises on eth0, and a neighbour.
type advertsSite struct {
	*adverts
	t         *testing.T
	neighbour *netnstest.NS
	config    *config.Config
}

func newAdvertsSite(t *testing.T) *advertsSite {
	t.Helper()
	s := &advertsSite{t: t, neighbour: netnstest.New(t), adverts: newAdverts(slog.New(slog.DiscardHandler), func() {})}
	for _, ns := range []*netnstest.NS{nil, s.neighbour} {
		netnstest.Setting(t, ns, "net/ipv6/conf/default/accept_dad", "0")
		netnstest.Setting(t, ns, "net/ipv6/conf/default/dad_transmits", "0")
	}
	netnstest.Setting(t, nil, "net/ipv6/conf/all/forwarding", "1")
	netnstest.Cable(t, nil, "eth0", s.neighbour, "eth0")
	netnstest.Addr(t, nil, "eth0", "fd00:10::1/64")
	netnstest.Eventually(t, advertLimit, "the neighbour is up", func() (up bool) {
		s.neighbour.Do(t, func() {
			out, _ := exec.Command("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link", "-tentative").Output()
			up = len(out) > 0
		})
		return up
	})
	s.config = &config.Config{
		Zones:    []edge.Zone{{Name: "lan", Interfaces: []string{"eth0"}}},
		DHCP:     []config.DHCP{{Zone: "lan", RouterAdvertisements: &config.RouterAdvertisements{Lifetime: 30 * time.Minute}}},
		DNS:      &config.DNS{Zones: []string{"lan"}, Domain: "home.example"},
		StateDir: t.TempDir(),
	}
	return s
}

// decide applies what there is now, and returns the problems.
func (s *advertsSite) decide() string {
	s.t.Helper()
	interfaces, err := host.New(slog.New(slog.DiscardHandler)).Snapshot()
	if err != nil {
		s.t.Fatal(err)
	}
	var all []string
	for _, p := range s.apply(s.t.Context(), decision{in: desired.Inputs{Config: s.config, Interfaces: interfaces}}) {
		all = append(all, p.String())
	}
	return strings.Join(all, "\n")
}

// sees waits until a command's output at the neighbour has all of these words,
// and none that begins with "!".
func (s *advertsSite) sees(command string, words ...string) {
	s.t.Helper()
	var out []byte
	netnstest.Eventually(s.t, advertLimit, strings.Join(words, ", "), func() bool {
		s.decide()
		s.neighbour.Do(s.t, func() { out, _ = exec.Command("sh", "-c", command).CombinedOutput() })
		for _, w := range words {
			if no, is := strings.CutPrefix(w, "!"); strings.Contains(string(out), strings.TrimPrefix(w, "!")) == (is && no != "") {
				return false
			}
		}
		return true
	})
}

// clients that ask and make themselves addresses in their own way. What they
// write is in file systems of their own.
const inItsOwn = `mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mkdir /run/dhcpcd /var/lib/dhcpcd &&
printf '#!/bin/sh\nenv | grep -E "^(reason|new_|nd1_)"\n' >/run/say && chmod +x /run/say && exec `

var advertClients = map[string]struct {
	command string
	says    []string
}{
	"dhclient": {
		"dhclient -6 -S -1 -d -sf /run/say -lf /run/leases -pf /run/pid eth0",
		[]string{"new_dhcp6_name_servers=fd00:10::1", "new_dhcp6_domain_search=home.example.", "new_dhcp6_info_refresh_time=600"},
	},
	"dhcpcd": {
		"dhcpcd -6 -B -f /dev/null -c /run/say -o dhcp6_name_servers -o dhcp6_domain_search eth0",
		[]string{
			"nd1_prefix_information1_prefix=fd00:10::", "nd1_prefix_information1_vltime=5400", "nd1_prefix_information1_pltime=2700",
			"nd1_rdnss1_servers=fd00:10::1", "nd1_dnssl1_search=home.example", "nd1_flags=O", "nd1_lifetime=1800",
			"new_dhcp6_name_servers=fd00:10::1", "new_dhcp6_domain_search=home.example",
		},
	},
}

// clientSays collects what a program says while it says it.
type clientSays struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *clientSays) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *clientSays) has(words []string) (lacking string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range words {
		if !strings.Contains(l.all.String(), w+"\n") {
			lacking += w + "\n"
		}
	}
	return lacking
}

func TestNetnsAdvertsAreForEveryMachine(t *testing.T) {
	netnstest.Run(t, func() {
		s := newAdvertsSite(t)
		if problems := s.decide(); problems != "" {
			t.Error(problems)
		}
		for name, machine := range advertClients {
			if _, err := exec.LookPath(name); err != nil {
				t.Errorf("%v: scripts/deps installs it", err)
				continue
			}
			var out clientSays
			ctx, cancel := context.WithCancel(t.Context())
			// Who goes takes along what it has started, which would keep the port.
			client := exec.CommandContext(ctx, "unshare", "-m", "-p", "--kill-child", "sh", "-c", inItsOwn+machine.command)
			client.Stdout, client.Stderr = &out, &out
			client.WaitDelay = time.Second // for those that it has started
			s.neighbour.Do(t, func() {
				if err := client.Start(); err != nil {
					t.Fatal(err)
				}
			})
			ended := make(chan struct{})
			go func() { defer close(ended); _ = client.Wait() }()
			deadline := time.After(advertLimit)
			for lacking := out.has(machine.says); lacking != ""; lacking = out.has(machine.says) {
				select {
				case <-time.After(10 * time.Millisecond):
				case <-deadline:
					t.Fatalf("%s does not say\n%sbut\n%s", name, lacking, out.all.String())
				}
			}
			cancel()
			<-ended
		}
		if rows := s.status(); len(rows) != 1 || rows[0].Sent == 0 || rows[0].Replies < 2 || rows[0].Error != "" || len(rows[0].Prefixes) != 1 {
			t.Errorf("the status is %+v", rows)
		}
	})
}

// The machine's prefix is another one: neighbours follow, and what they had is
// deprecated; also by the next process, which knows of it only from the disk.
func TestNetnsAdvertsFollowThisMachinesAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		s := newAdvertsSite(t)
		s.sees("ip -6 -o addr show dev eth0 scope global", "fd00:10::", "!deprecated")
		s.sees("ip -6 route show default", "default via fe80:")
		netnstest.Addr(t, nil, "eth0", "fd00:20::1/64")
		netnstest.AddrDel(t, nil, "eth0", "fd00:10::1/64")
		s.sees("ip -6 -o addr show dev eth0 scope global | sort", "fd00:20::", "deprecated")
		if rows := s.status(); len(rows) != 1 || len(rows[0].Deprecated) != 1 || rows[0].Deprecated[0] != netip.MustParsePrefix("fd00:10::/64") {
			t.Errorf("the status is %+v", rows)
		}

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.run(ctx) }()
		file := filepath.Join(s.config.StateDir, "advertised-prefixes.json")
		netnstest.Eventually(t, advertLimit, "it is on disk", func() bool {
			text, _ := os.ReadFile(file)
			return strings.Contains(string(text), "fd00:10::/64") && strings.Contains(string(text), "fd00:20::/64")
		})
		s.retire(true) // no word of an end
		cancel()
		<-ended
		if s.decide(); len(s.advertiser.Status()) != 0 {
			t.Error("a process that has retired advertises")
		}
		s.sees("ip -6 route show default", "default via fe80:")

		next := newAdverts(slog.New(slog.DiscardHandler), func() {})
		s.adverts = next
		netnstest.Addr(t, nil, "eth0", "fd00:30::1/64")
		netnstest.AddrDel(t, nil, "eth0", "fd00:20::1/64")
		s.sees("ip -6 -o addr show dev eth0 scope global deprecated", "fd00:10::", "fd00:20::", "!fd00:30::")
		s.sees("ip -6 -o addr show dev eth0 scope global -deprecated", "fd00:30::", "!fd00:20::")

		// A retirement that came to nothing, and then the end.
		s.retire(true)
		s.retire(false)
		if len(s.advertiser.Status()) != 1 {
			t.Error("it does not go on")
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		_ = s.run(ctx)
		s.sees("ip -6 route show default; echo routes", "!default", "routes")
	})
}
