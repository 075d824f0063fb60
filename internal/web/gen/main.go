// Command gen prints docs/metrics.md.
package main

import (
	"fmt"

	"e13.dev/gatehouse/internal/web"
)

func main() { fmt.Print(web.MetricsDocs()) }
