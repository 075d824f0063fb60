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
dataPlane: nat or have pools, and it may, it also asks what this machine lacks
for that.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFiles(files); err != nil {
				return err
			}
			c, err := load(cmd.ErrOrStderr(), files)
			if err != nil {
				return err
			}
			if usesNAT(c) {
				here := machine{mayAsk: administersNetwork(), lacking: nat.Lacking, obstacles: nat.Obstacles}
				if err := here.check(cmd.Context(), cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			if len(c.Pools) > 0 {
				here := poolMachine{mayAsk: administersNetwork(), lacking: vip.Lacking}
				if err := here.check(cmd.Context(), cmd.ErrOrStderr()); err != nil {
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

// machine is what the nat data plane would run on.
type machine struct {
	mayAsk    bool
	lacking   func(context.Context) ([]nat.Lack, error)
	obstacles func(context.Context) ([]string, error)
}

// check prints what is missing, which is a no, and what may be in the way. Files
// are often checked where they are not used, by somebody who may not look.
func (m machine) check(ctx context.Context, stderr io.Writer) error {
	const notLooked = "not looked at: whether this machine can do dataPlane: nat; that takes CAP_NET_ADMIN"
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
		fmt.Fprintln(stderr, "this machine lacks for dataPlane: nat: the nft command; apt install nftables, or what your distribution calls it")
		return errNo
	case err != nil:
		return err
	}
	for _, l := range lacking {
		fmt.Fprintf(stderr, "this machine lacks for dataPlane: nat: %s; it takes %s\n", l.What, l.Needs)
	}
	if len(lacking) > 0 {
		return errNo
	}
	obstacles, err := m.obstacles(ctx)
	if err != nil {
		return err
	}
	for _, o := range obstacles {
		fmt.Fprintf(stderr, "warning: %s drops what none of its rules accepts: it may drop what dataPlane: nat forwards; have it accept ct status dnat\n", o)
	}
	return nil
}

// poolMachine is what addresses of pools would be on.
type poolMachine struct {
	mayAsk  bool
	lacking func(context.Context) ([]vip.Lack, error)
}

// check prints what is missing, which is a no.
func (m poolMachine) check(ctx context.Context, stderr io.Writer) error {
	const notLooked = "not looked at: whether this machine can have addresses of pools; that takes CAP_NET_ADMIN"
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
		fmt.Fprintln(stderr, "this machine lacks for pools: the nft command; apt install nftables, or what your distribution calls it")
		return errNo
	case err != nil:
		return err
	}
	for _, l := range lacking {
		fmt.Fprintf(stderr, "this machine lacks for pools: %s; it takes %s\n", l.What, l.Needs)
	}
	if len(lacking) > 0 {
		return errNo
	}
	return nil
}
