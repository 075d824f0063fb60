// Command gatehouse is the front door of a bare-metal Kubernetes cluster.
package main

import (
	"os"

	"e13.dev/gatehouse/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
