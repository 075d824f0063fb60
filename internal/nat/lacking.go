package nat

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/nft"
)

// Whether a table could be made is asked of one that nobody has.
const checkTable = Table + "-check"

// features are what the layout takes, each in as few rules as show it. A base
// chain is in them where a feature depends on the hook.
var features = []struct{ what, needs, rules string }{
	{"network address translation for IPv4 and IPv6 in one table", "Linux 5.2 with nf_tables, nft_nat and nft_chain_nat", `
		chain c { type nat hook prerouting priority -110; meta l4proto tcp dnat ip to 192.0.2.1; }
		chain d { type nat hook prerouting priority -110; meta l4proto tcp dnat ip6 to [2001:db8::1]:80; }`},
	{"maps with keys of several fields", "Linux 4.1, nftables 0.9.4", `
		map m { typeof iifname . meta l4proto . th dport : ip daddr . th dport; }`},
	{"intervals in keys of several fields", "Linux 5.6, nftables 0.9.4", `
		set s { typeof iifname . meta l4proto . th dport . ip saddr; flags interval; elements = { "lo" . tcp . 80 . 192.0.2.0/24 }; }
		chain c { type nat hook prerouting priority -110; iifname . meta l4proto . th dport . ip saddr @s return; }`},
	{"backends from a map, by a random number (numgen)", "Linux 5.2 with nft_numgen, nftables 0.9.4", `
		map m { typeof iifname . tcp dport . numgen random mod 2 : ip daddr . tcp dport; }
		chain c { type nat hook prerouting priority -110; dnat ip to iifname . tcp dport . numgen random mod 2 map @m; }`},
	{"backends from a map, by a hash of the client (jhash)", "Linux 5.2 with nft_hash, nftables 0.9.4", `
		map m { typeof iifname . udp dport . numgen random mod 2 : ip6 daddr . udp dport; }
		chain c { type nat hook prerouting priority -110; dnat ip6 to iifname . udp dport . jhash @nh,64,64 mod 2 seed 0x1 map @m; }`},
	{"whether an address is this machine's (fib)", "Linux 4.10 with nft_fib_inet", `
		chain c { type nat hook prerouting priority -110; fib daddr type local accept; }`},
	{"verdicts from a map", "Linux 3.18, nftables 0.9.4", `
		chain b { accept; }
		map m { type ifname . inet_proto . inet_service : verdict; elements = { "lo" . sctp . 80 : goto b }; }
		chain c { type nat hook prerouting priority -110; iifname . meta l4proto . th dport vmap @m; }`},
	{"the interface that a packet came from, on its way out", "Linux 5.7", `
		chain c { type nat hook postrouting priority 90; iifname . oifname { "lo" . "lo" } masquerade; }`},
	{"the port that a client used", "Linux 4.15 with nft_ct, nftables 0.9.4", `
		set s { type ifname . inet_proto . inet_service; }
		chain c { type nat hook postrouting priority 90; ct status & dnat == 0 return; meta l4proto tcp iifname . meta l4proto . ct original proto-dst @s return; }`},
	{"the address that a client used", "Linux 4.17 with nft_ct, nftables 0.9.4", `
		set s { type ifname . ipv6_addr . inet_proto . inet_service; }
		chain c { type nat hook postrouting priority 90; meta l4proto tcp iifname . ct original ip6 daddr . meta l4proto . ct original proto-dst @s return; }`},
	{"backends from a map, by hashes in a key of several fields (jhash)", "Linux 5.2 with nft_hash, nftables 1.0.1", `
		map m { typeof numgen random mod 2 . ip6 daddr . tcp dport . numgen random mod 2 : ip6 daddr . tcp dport; }
		chain c { type nat hook prerouting priority -110; dnat ip6 to jhash iifname mod 4294967295 seed 0x1 . ip6 daddr . tcp dport . jhash @nh,64,64 mod 2 seed 0x1 map @m; }`},
	{"counters that packets add to sets", "Linux 5.7, nftables 0.9.4", `
		set s { type iface_index . inet_service . ipv6_addr . inet_service; flags dynamic; }
		chain c { type filter hook forward priority -10; meta l4proto sctp update @s { oif . ct original proto-dst . ip6 saddr . th sport counter }; }`},
	{"maps that packets add to", "Linux 4.3, nftables 0.9.4", `
		map m { typeof iif . tcp dport . ip saddr : ip daddr . tcp dport; flags dynamic,timeout; size 16; }
		chain c { type nat hook postrouting priority 90; meta l4proto tcp update @m { iif . ct original proto-dst . ip saddr timeout 1s : ip daddr . th dport }; }
		chain d { type nat hook prerouting priority -110; dnat ip to iif . tcp dport . ip saddr map @m; }`},
	{"refusing packets (reject)", "Linux 3.18 with nft_reject_inet", `
		chain c { type filter hook input priority -10; meta l4proto tcp reject with tcp reset; meta l4proto udp reject with icmpx port-unreachable; }`},
}

// Lacking says what nft and the kernel of this machine cannot do that the layout
// takes, by letting nft check it. Nothing is changed, though kernel modules may
// be loaded. Without nft, or the right to use it, the error is nft.ErrNotInstalled
// or nft.ErrNotPermitted.
func Lacking(ctx context.Context) ([]nft.Lack, error) {
	checker, err := knftables.New(family, checkTable)
	if err != nil {
		if strings.Contains(err.Error(), "or later") { // it is older than knftables wants
			return []nft.Lack{{What: err.Error(), Needs: "nftables 1.0.1"}}, nil
		}
		return nil, fmt.Errorf("nat: %w", nft.Explain(err))
	}
	ctx, cancel := context.WithTimeout(ctx, nft.Patience)
	defer cancel()
	var lacks []nft.Lack
	for _, f := range features {
		if err := check(ctx, fmt.Sprintf("table inet %s { %s\n}\n", checkTable, f.rules)); err != nil {
			if ctx.Err() != nil || errors.Is(err, nft.ErrNotPermitted) || errors.Is(err, nft.ErrNotInstalled) {
				return nil, fmt.Errorf("nat: %w", err)
			}
			lacks = append(lacks, nft.Lack{What: f.what, Needs: f.needs})
		}
	}
	if len(lacks) > 0 {
		return lacks, nil
	}
	// All parts are there: so should the whole be.
	tx := checker.NewTransaction()
	for _, o := range layout() {
		tx.Add(o)
	}
	addChains(tx, append(exampleChains(), "sctp6-random-2", "udp6-affinity-251", "udp6-random-2", "udp6-source-251"))
	if err := checker.Check(ctx, tx); err != nil {
		return []nft.Lack{{What: nft.Explain(err).Error(), Needs: "nftables 1.0.6"}}, nil
	}
	return nil, nil
}

// check lets nft say whether rules could be loaded.
func check(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "--check", "--file", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nft.ErrNotInstalled
		}
		return nft.Explain(errors.New(string(out)))
	}
	return nil
}

// Obstacles returns the chains of others that drop what is forwarded unless a
// rule of theirs lets it pass: that this table lets it pass does not help, "chain
// FORWARD of table ip filter". Those that iptables-legacy makes are not seen.
func Obstacles(context.Context) ([]string, error) {
	k, err := openKernel()
	if err != nil {
		return nil, fmt.Errorf("nat: list chains: %w", explain(err))
	}
	defer k.close()
	chains, err := k.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nat: list chains: %w", explain(err))
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	var obstacles []string
	for _, c := range chains {
		name, forwards := families[c.Table.Family]
		if c.Table.Name == "gatehouse-firewall" {
			continue // it lets pass what this package translates
		}
		if forwards && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			obstacles = append(obstacles, fmt.Sprintf("chain %s of table %s %s", c.Name, name, c.Table.Name))
		}
	}
	slices.Sort(obstacles)
	return obstacles, nil
}
