package prove

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/firewall"
)

// Policies that decide nothing may be taken out, all at once, and no packet notices.
func TestIdlePolicies(t *testing.T) {
	found := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		site, in := randomSite(r)
		idle := site.Matrix().Idle
		found += len(idle)
		c := *in.Config
		c.Firewall = &config.Firewall{}
		for _, p := range in.Config.Firewall.Policies {
			if why := fmt.Sprintf("%s (%s)", p.String(), p.Pos); !slices.ContainsFunc(idle, func(i string) bool { return i == why }) {
				c.Firewall.Policies = append(c.Firewall.Policies, p)
			}
		}
		if len(c.Firewall.Policies)+len(idle) != len(in.Config.Firewall.Policies) {
			t.Fatalf("seed %d: %q are no policies", seed, idle)
		}
		without := in
		without.Config = &c
		rules := firewall.Compile(without)
		for range 100 {
			p, from, to, _ := randomPacket(r)
			if was, is := site.Rules.Verdict(p), rules.Verdict(p); was.Accept != is.Accept || was.Masquerade != is.Masquerade {
				t.Fatalf("seed %d: without %q a packet from %s to %s fares otherwise: %+v", seed, idle, from, to, p)
			}
		}
	}
	if found < 50 {
		t.Errorf("%d idle policies: this test does not look right", found)
	}
}
