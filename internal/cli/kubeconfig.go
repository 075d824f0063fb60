package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func newKubeconfig() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Not there yet",
		RunE:  func(*cobra.Command, []string) error { return errors.New("kubeconfig is not there yet") },
	}
}
