package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/kube"
	"e13.dev/gatehouse/internal/teardown"
)

// othersRun says whether a gatehouse runs here; tests run beside some.
var othersRun = teardown.Running

func newUninstall() *cobra.Command {
	var files []string
	var kubeconfig, output string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "uninstall -c FILE...",
		Short: "Take out of the cluster what gatehouse has written in Services",
		Long: `uninstall takes gatehouse's finalizer, addresses and conditions from all Services of the
cluster, so that they, and their namespaces, can be deleted when no gatehouse runs any
more. What others have written stays. It does nothing while a gatehouse runs here. It
takes the rights of deploy/rbac.yaml, or those of an administrator's kubeconfig.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("-o %s: write table or json", output)}
			}
			if kubeconfig == "" && len(files) == 0 {
				return usageError{errors.New("say which cluster: with -c FILE, whose kubernetes.kubeconfig it is, or with --kubeconfig FILE")}
			}
			if kubeconfig == "" {
				c, err := load(cmd.ErrOrStderr(), files)
				if err != nil {
					return err
				}
				if c.Kubernetes == nil {
					return fmt.Errorf("%s: there is no kubernetes block, so that no cluster is known; name one with --kubeconfig FILE", strings.Join(files, ", "))
				}
				kubeconfig = c.Kubernetes.Kubeconfig
			}
			if err := othersRun(); err != nil && !dryRun {
				if running, ok := errors.AsType[*teardown.RunningError](err); ok {
					return fmt.Errorf("%w, and would write all of it again; stop it first, with systemctl stop gatehouse or a signal", running)
				}
				return err
			}
			client, err := kube.New(kube.Options{Kubeconfig: kubeconfig, UserAgent: "gatehouse/" + Version, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			report := uninstalled{DryRun: dryRun, Services: []kube.Cleaning{}}
			if output == "table" {
				report.out = cmd.OutOrStdout()
			}
			err = client.Uninstall(ctx, dryRun, report.tell)
			if err != nil {
				report.Error = err.Error()
			}
			if output == "json" {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				if jsonErr := encoder.Encode(report); jsonErr != nil {
					return jsonErr
				}
			} else if err == nil {
				report.sum()
			}
			switch {
			case err != nil:
				return err
			case report.Failed > 0:
				return errNo
			}
			return nil
		},
	}
	addFiles(cmd, &files)
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "the cluster of this kubeconfig `FILE`, whatever the configuration says")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// uninstalled is what was done, Service by Service.
type uninstalled struct {
	out io.Writer // nil: nothing is printed on the way

	DryRun   bool            `json:"dryRun"`
	Services []kube.Cleaning `json:"services"` // that had something of gatehouse's
	Failed   int             `json:"failed"`   // of them
	Error    string          `json:"error,omitempty"`
}

func (u *uninstalled) tell(c kube.Cleaning) {
	u.Services = append(u.Services, c)
	if c.Error != "" {
		u.Failed++
	}
	if u.out == nil {
		return
	}
	removed := "removed from"
	if u.DryRun {
		removed = "would be removed from"
	}
	if c.Error != "" {
		fmt.Fprintf(u.out, "not %s service/%s: %s\n", removed, c.Service, c.Error)
		return
	}
	fmt.Fprintf(u.out, "%s service/%s: %s\n", removed, c.Service, strings.Join(c.Removed, ", "))
}

func (u *uninstalled) sum() {
	services := func(n int) string {
		if n == 1 {
			return "1 Service"
		}
		return fmt.Sprintf("%d Services", n)
	}
	switch all, done := len(u.Services), len(u.Services)-u.Failed; {
	case all == 0:
		fmt.Fprintln(u.out, "nothing to remove")
	case u.DryRun:
		fmt.Fprintf(u.out, "%s would be changed\n", services(all))
	case u.Failed > 0:
		fmt.Fprintf(u.out, "%s changed, %d failed\n", services(done), u.Failed)
	default:
		fmt.Fprintf(u.out, "%s changed\n", services(done))
	}
}
