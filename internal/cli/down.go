package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/daemon"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/teardown"
)

func newDown() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove everything that gatehouse has left in this machine's kernel",
		Long: `down removes the rules, routes and connections that gatehouse has left in the kernel:
the nat data plane and the firewall go on when gatehouse is stopped, and end here.
Without the firewall everything may pass that nobody else keeps from it. Interfaces
and addresses of links go too: whoever has come in by one is cut off. It does
nothing while a gatehouse runs, and touches nothing of anybody else.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !administersNetwork() {
				return errors.New("down takes CAP_NET_ADMIN: run it as root")
			}
			removed, err := teardown.Run(cmd.Context(), daemon.TransparentDelivery)
			if running, ok := errors.AsType[*teardown.RunningError](err); ok {
				return fmt.Errorf("%w; stop it first, with systemctl stop gatehouse or a signal", running)
			}
			for _, what := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", what)
			}
			switch {
			case errors.Is(err, nft.ErrNotInstalled):
				return fmt.Errorf("%w; apt install nftables, or what your distribution calls it", err)
			case err != nil:
				return err
			case len(removed) == 0:
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			return nil
		},
	}
}

// administersNetwork says whether this process has CAP_NET_ADMIN.
func administersNetwork() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
