package filter

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/nft"
)

// Lacking says what nft and the kernel of this machine cannot do that a firewall
// takes, by letting nft check a small one. Nothing is changed, though kernel modules
// may be loaded. Without nft, or the right to use it, the error is nft.ErrNotInstalled
// or nft.ErrNotPermitted.
func Lacking(ctx context.Context) ([]nft.Lack, error) {
	checker, err := knftables.New(knftables.InetFamily, Table+"-check")
	if err != nil {
		if strings.Contains(err.Error(), "or later") { // it is older than knftables wants
			return []nft.Lack{{What: err.Error(), Needs: "nftables 1.0.1"}}, nil
		}
		return nil, fmt.Errorf("firewall: %w", nft.Explain(err))
	}
	ctx, cancel := context.WithTimeout(ctx, nft.Patience)
	defer cancel()
	rules := firewall.Compile(firewall.Inputs{Config: &config.Config{
		Zones: []edge.Zone{{Name: "a", Interfaces: []string{"lo"}}},
		Firewall: &config.Firewall{Policies: []config.Policy{
			{From: "a", To: config.Self, Allow: true, Services: []config.PortRange{{Protocol: config.ICMP}}},
			{Allow: true, Masquerade: true},
		}},
	}})
	tx := checker.NewTransaction()
	for _, o := range Render(&rules) {
		tx.Add(o)
	}
	if err := checker.Check(ctx, tx); err != nil {
		why := nft.Explain(err)
		if ctx.Err() != nil || errors.Is(why, nft.ErrNotPermitted) || errors.Is(why, nft.ErrNotInstalled) {
			return nil, fmt.Errorf("firewall: %w", why)
		}
		return []nft.Lack{{What: why.Error(), Needs: "Linux 5.7 with nf_tables, nft_ct, nft_nat, nft_masq and nft_chain_nat, and nftables 1.0.1"}}, nil
	}
	return nil, nil
}
