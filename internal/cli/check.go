package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filter"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/vip"
)

func newCheck() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "check -c FILE...",
		Short: "Check configuration files; change nothing",
		Long: `check prints every problem of the files as FILE:LINE:COL: path: what is wrong;
what would be right. It opens no port and asks no cluster. If the files use
dataPlane: nat, or have pools or a firewall, and it may, it also asks what this
machine lacks for that.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFiles(files); err != nil {
				return err
			}
			c, err := load(cmd.ErrOrStderr(), files)
			if err != nil {
				return err
			}
			for _, m := range machinesOf(c) {
				if err := m.check(cmd.Context(), cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", strings.Join(files, ", "))
			return nil
		},
	}
	addFiles(cmd, &files)
	return cmd
}

// usesNAT says whether the files do. Services may ask for it, too.
func usesNAT(c *config.Config) bool {
	return c.Kubernetes != nil && c.Kubernetes.DataPlane == edge.DataPlaneNAT ||
		slices.ContainsFunc(c.Frontends, func(f config.Frontend) bool { return f.DataPlane == edge.DataPlaneNAT })
}

// machinesOf is what the files want this machine to be.
func machinesOf(c *config.Config) (all []machine) {
	may := administersNetwork()
	if usesNAT(c) {
		all = append(all, natMachine(may, nat.Lacking, nat.Obstacles))
	}
	if c.Firewall != nil {
		all = append(all, machine{of: "firewall", can: "have a firewall", mayAsk: may, lacking: filter.Lacking})
	}
	if len(c.Pools) > 0 {
		all = append(all, poolMachine(may, vip.Lacking))
	}
	return all
}

func natMachine(mayAsk bool, lacking func(context.Context) ([]nft.Lack, error), obstacles func(context.Context) ([]string, error)) machine {
	return machine{of: "dataPlane: nat", can: "do dataPlane: nat", mayAsk: mayAsk, lacking: lacking, obstacles: obstacles}
}

func poolMachine(mayAsk bool, lacking func(context.Context) ([]nft.Lack, error)) machine {
	return machine{of: "pools", can: "have addresses of pools", mayAsk: mayAsk, lacking: lacking}
}

// machine is what something in the files would run on.
type machine struct {
	of        string // "dataPlane: nat"
	can       string // follows "this machine can": "do dataPlane: nat"
	mayAsk    bool
	lacking   func(context.Context) ([]nft.Lack, error)
	obstacles func(context.Context) ([]string, error) // nil: there are none
}

// check prints what is missing, which is a no, and what may be in the way. Files
// are often checked where they are not used, by somebody who may not look.
func (m machine) check(ctx context.Context, stderr io.Writer) error {
	notLooked := "not looked at: whether this machine can " + m.can + "; that takes CAP_NET_ADMIN"
	if !m.mayAsk {
		fmt.Fprintln(stderr, notLooked)
		return nil
	}
	lacking, err := m.lacking(ctx)
	switch {
	case errors.Is(err, nft.ErrNotPermitted): // all the same, as in some containers
		fmt.Fprintln(stderr, notLooked)
		return nil
	case errors.Is(err, nft.ErrNotInstalled):
		fmt.Fprintf(stderr, "this machine lacks for %s: the nft command; apt install nftables, or what your distribution calls it\n", m.of)
		return errNo
	case err != nil:
		return err
	}
	for _, l := range lacking {
		fmt.Fprintf(stderr, "this machine lacks for %s: %s; it takes %s\n", m.of, l.What, l.Needs)
	}
	if len(lacking) > 0 {
		return errNo
	}
	if m.obstacles == nil {
		return nil
	}
	obstacles, err := m.obstacles(ctx)
	if err != nil {
		return err
	}
	for _, o := range obstacles {
		fmt.Fprintf(stderr, "warning: %s drops what none of its rules accepts: it may drop what %s forwards; have it accept ct status dnat\n", o, m.of)
	}
	return nil
}
