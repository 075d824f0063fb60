package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/nft"
)

// The page that operators read to know what becomes of their machine has it
// all.
func TestTransparencyIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "client-address.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		fmt.Sprintf("%d:  from all fwmark %#x/%#x lookup %d proto 91", TransparentDelivery.Priority, transparentMark, transparentMark, TransparentDelivery.Table),
		fmt.Sprintf("local default dev lo table %d proto 91", TransparentDelivery.Table),
		fmt.Sprintf("meta mark set meta mark | 0x%08x", transparentMark),
	}
	for _, o := range nft.Render(nft.State{TransparentMark: transparentMark}) {
		switch o := o.(type) {
		case *knftables.Chain:
			want = append(want, fmt.Sprintf("\tchain %s {", o.Name), fmt.Sprintf("type %s hook %s priority mangle; policy accept;", *o.Type, *o.Hook))
		case *knftables.Rule:
			_, conditions, _ := strings.Cut(o.Rule, "} ") // nft puts the protocols in an order of its own
			conditions, _, _ = strings.Cut(conditions, " meta mark")
			want = append(want, conditions)
		}
	}
	for _, w := range want {
		if !strings.Contains(string(text), w) {
			t.Errorf("docs/client-address.md lacks %q", w)
		}
	}
}

func TestExplainTransparency(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("nft: %w", nft.ErrNotInstalled), "transparent: the nft command is not installed; apt install nftables, or what your distribution calls it"},
		{fmt.Errorf("add ip rule: %w", host.ErrNotPermitted), "transparent: add ip rule: changing routes is not permitted; it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"},
		{fmt.Errorf("nft: %w", nft.ErrNotPermitted), "transparent: nft: changing nftables is not permitted; it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"},
		{errors.New("nft: apply: 3:1-9: Error: Could not process rule: No such file or directory"), "transparent: nft: apply: 3:1-9: Error: Could not process rule: No such file or directory; the kernel seems to lack nft_socket (CONFIG_NFT_SOCKET): modprobe nft_socket"},
		{errors.New("list rules: no buffer space available"), "transparent: list rules: no buffer space available; it is tried again"},
	} {
		if got := explainTransparency(c.err).String(); got != c.want {
			t.Errorf("explained as %q, want %q", got, c.want)
		}
	}
}
