package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/nft"
)

func TestCheckSaysWhatTheMachineLacks(t *testing.T) {
	const notLooked = "not looked at: whether this machine can do dataPlane: nat; that takes CAP_NET_ADMIN\n"
	for name, c := range map[string]struct {
		mayNot    bool
		lacks     []nft.Lack
		err       error
		obstacles []string
		want      string
		wantErr   error
	}{
		"nothing": {},
		"features": {
			lacks:   []nft.Lack{{What: "maps with a verdict", Needs: "Linux 4.1"}, {What: "hashes", Needs: "nftables 0.8"}},
			want:    "this machine lacks for dataPlane: nat: maps with a verdict; it takes Linux 4.1\nthis machine lacks for dataPlane: nat: hashes; it takes nftables 0.8\n",
			wantErr: errNo, obstacles: []string{"not asked for"},
		},
		"nft": {
			err:     fmt.Errorf("nat: %w", nft.ErrNotInstalled),
			want:    "this machine lacks for dataPlane: nat: the nft command; apt install nftables, or what your distribution calls it\n",
			wantErr: errNo,
		},
		"the right":                {mayNot: true, want: notLooked},
		"the right, and nft":       {mayNot: true, err: nft.ErrNotInstalled, want: notLooked},
		"the right, says nft":      {err: nft.ErrNotPermitted, want: notLooked},
		"somebody else's firewall": {obstacles: []string{"chain FORWARD of table ip filter"}, want: "warning: chain FORWARD of table ip filter drops what none of its rules accepts: it may drop what dataPlane: nat forwards; have it accept ct status dnat\n"},
		"an answer":                {err: context.DeadlineExceeded, wantErr: context.DeadlineExceeded},
	} {
		var stderr strings.Builder
		err := natMachine(!c.mayNot,
			func(context.Context) ([]nft.Lack, error) { return c.lacks, c.err },
			func(context.Context) ([]string, error) { return c.obstacles, nil },
		).check(t.Context(), &stderr)
		if stderr.String() != c.want || !errors.Is(err, c.wantErr) {
			t.Errorf("%s: got %q, %v; want %q, %v", name, stderr.String(), err, c.want, c.wantErr)
		}
	}
}

// What a machine lacks for pools is a no.
func TestCheckSaysWhatTheMachineLacksForPools(t *testing.T) {
	for name, c := range map[string]struct {
		mayNot  bool
		lacks   []nft.Lack
		err     error
		want    string
		wantErr error
	}{
		"nothing":         {},
		"may not look":    {mayNot: true, want: "not looked at: whether this machine can have addresses of pools; that takes CAP_NET_ADMIN\n"},
		"may not ask":     {err: nft.ErrNotPermitted, want: "not looked at: whether this machine can have addresses of pools; that takes CAP_NET_ADMIN\n"},
		"no nft":          {err: nft.ErrNotInstalled, want: "this machine lacks for pools: the nft command; apt install nftables, or what your distribution calls it\n", wantErr: errNo},
		"may send no ARP": {lacks: []nft.Lack{{What: "the right to ask", Needs: "CAP_NET_RAW"}}, want: "this machine lacks for pools: the right to ask; it takes CAP_NET_RAW\n", wantErr: errNo},
	} {
		var stderr strings.Builder
		err := poolMachine(!c.mayNot, func(context.Context) ([]nft.Lack, error) { return c.lacks, c.err }).check(t.Context(), &stderr)
		if stderr.String() != c.want || !errors.Is(err, c.wantErr) {
			t.Errorf("%s: got %q, %v; want %q, %v", name, stderr.String(), err, c.want, c.wantErr)
		}
	}
}
