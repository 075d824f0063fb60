// Package archtest keeps the shape of the house: imports point down, siblings
// do not know each other, and one package alone speaks to Kubernetes.
//
// It opens the files itself: a test that asks `go list` gets a cached pass
// after an import has changed.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "e13.dev/gatehouse/"

// What each package of the product may import of the product. A package that
// is not listed may be imported by nobody and fails the test until it is.
var allowed = map[string][]string{
	"cmd/gatehouse":        {"internal/cli"},
	"internal/cli":         {"deploy", "internal/changes", "internal/daemon", "internal/demo", "internal/desired", "internal/explain", "internal/filter", "internal/firstfile", "internal/host", "internal/status", "internal/config", "internal/edge", "internal/handover", "internal/firewall", "internal/kube", "internal/nat", "internal/nft", "internal/prove", "internal/teardown", "internal/trial", "internal/vip"},
	"internal/cli/gen":     {"internal/cli", "internal/config"},
	"internal/demo":        {"internal/daemon"},
	"internal/daemon":      {"internal/config", "internal/conntrack", "internal/desired", "internal/names", "internal/dns", "internal/dhcp", "internal/leases", "internal/dhcp6", "internal/edge", "internal/explain", "internal/filewatch", "internal/filter", "internal/firewall", "internal/handover", "internal/health", "internal/history", "internal/host", "internal/kube", "internal/l4proxyfile", "internal/laststate", "internal/vip", "internal/nat", "internal/nft", "internal/ports", "internal/ra", "internal/relay", "internal/resolve", "internal/status", "internal/trial", "internal/web", "internal/links", "internal/dhcpclient"},
	"internal/teardown":    {"internal/conntrack", "internal/edge", "internal/filter", "internal/host", "internal/nat", "internal/nft", "internal/vip", "internal/links"},
	"internal/web":         {"internal/desired", "internal/explain", "internal/status", "internal/edge", "internal/trial"},
	"internal/web/gen":     {"internal/web"},
	"internal/firstfile":   {"internal/edge"},
	"internal/explain":     {"internal/config", "internal/desired", "internal/edge", "internal/firewall"},
	"internal/changes":     {"internal/config", "internal/desired", "internal/edge", "internal/status"},
	"internal/history":     {"internal/edge", "internal/status"},
	"internal/status":      {"internal/desired", "internal/edge"},
	"internal/dns":         {"internal/edge", "internal/ratelimit"},
	"internal/desired":     {"internal/config", "internal/edge", "internal/pools"},
	"internal/firewall":    {"internal/config", "internal/edge"},
	"internal/filter":      {"internal/config", "internal/edge", "internal/firewall", "internal/nft"},
	"internal/names":       {"internal/config", "internal/desired", "internal/edge"},
	"internal/links":       {"internal/config", "internal/edge"},
	"internal/dhcpclient":  {"internal/edge"},
	"internal/pools":       {"internal/edge"},
	"internal/vip":         {"internal/edge", "internal/nft"},
	"internal/trial":       {"internal/edge"},
	"internal/prove":       {"internal/config", "internal/desired", "internal/edge", "internal/firewall"},
	"internal/laststate":   {"internal/edge"},
	"internal/dhcp":        {"internal/config", "internal/edge", "internal/ratelimit"},
	"internal/leases":      {"internal/edge"},
	"internal/config":      {"internal/edge"},
	"internal/config/gen":  {"internal/config"},
	"internal/conntrack":   {"internal/edge"},
	"internal/edge":        {},
	"internal/ra":          {},
	"internal/dhcp6":       {},
	"internal/kube":        {"internal/edge"},
	"internal/relay":       {"internal/edge", "internal/hello", "internal/ports", "internal/proxyproto", "internal/ratelimit", "internal/rendezvous"},
	"internal/hello":       {},
	"internal/nat":         {"internal/edge", "internal/maglev", "internal/nft"},
	"internal/nft":         {},
	"internal/handover":    {},
	"internal/health":      {"internal/edge"},
	"internal/host":        {"internal/edge"},
	"internal/ports":       {"internal/edge"},
	"internal/resolve":     {},
	"internal/filewatch":   {},
	"internal/l4proxyfile": {"internal/edge"},
	"internal/maglev":      {},
	"internal/proxyproto":  {},
	"internal/ratelimit":   {},
	"internal/rendezvous":  {},
	"internal/netnstest":   {},
	"internal/archtest":    {},
}

// Whole families of packages that only these packages may import.
var gates = map[string][]string{
	"k8s.io/":                                        {"internal/kube"},
	"github.com/vishvananda/netlink":                 {"internal/conntrack", "internal/host", "internal/netnstest", "internal/ports", "internal/vip", "internal/links"},
	"sigs.k8s.io/knftables":                          {"internal/filter", "internal/nat", "internal/nft", "internal/vip"},
	"github.com/insomniacslk/dhcp":                   {"internal/dhcp", "internal/dhcp6", "internal/dhcpclient"},
	"github.com/mdlayher/packet":                     {"internal/vip"},
	"github.com/miekg/dns":                           {"internal/dns"},
	"github.com/google/nftables":                     {"internal/nat", "internal/nft"},
	"go.yaml.in/yaml":                                {"internal/config"},
	"github.com/fsnotify/fsnotify":                   {"internal/filewatch"},
	"github.com/prometheus/client_golang/prometheus": {"internal/web"},
	"github.com/spf13/cobra":                         {"internal/cli"},
}

func TestImportsPointDown(t *testing.T) {
	seen := map[string]bool{}
	walk(t, func(pkg, file string, imports []string) {
		seen[pkg] = true
		may, listed := allowed[pkg]
		if !listed {
			t.Errorf("package %s is not in the list of archtest: decide what it may import", pkg)
		}
		for _, path := range imports {
			if own, ok := strings.CutPrefix(path, module); ok && !slices.Contains(may, own) {
				t.Errorf("%s: %s may not import %s", file, pkg, own)
			}
			for prefix, only := range gates {
				if strings.HasPrefix(path, prefix) && !slices.Contains(only, pkg) {
					t.Errorf("%s: only %v may import %s", file, only, path)
				}
			}
		}
	})
	for pkg := range allowed {
		if !seen[pkg] && pkg != "internal/archtest" {
			t.Errorf("package %s is in the list of archtest and does not exist", pkg)
		}
	}
}

// Each package says what it owns, in one place.
func TestEveryPackageHasOneDoc(t *testing.T) {
	docs := map[string][]string{}
	fset := token.NewFileSet()
	walkFiles(t, func(pkg, file string) {
		f, err := parser.ParseFile(fset, file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		docs[pkg] = append(docs[pkg], "")
		if f.Doc != nil {
			docs[pkg][0] += file + " "
		}
	})
	for pkg, files := range docs {
		if n := len(strings.Fields(files[0])); n != 1 {
			t.Errorf("package %s is documented in %d files, want 1: %s", pkg, n, files[0])
		}
	}
}

func walk(t *testing.T, visit func(pkg, file string, imports []string)) {
	t.Helper()
	fset := token.NewFileSet()
	walkFiles(t, func(pkg, file string) {
		f, err := parser.ParseFile(fset, file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		var imports []string
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			imports = append(imports, path)
		}
		visit(pkg, file, imports)
	})
}

func walkFiles(t *testing.T, visit func(pkg, file string)) {
	t.Helper()
	root := filepath.Join("..", "..")
	for _, top := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			pkg, err := filepath.Rel(root, filepath.Dir(path))
			visit(filepath.ToSlash(pkg), path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
