package explain

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// A closing is one way to close a row, by its code.
type closing struct {
	file    string // "" is siteFile
	service edge.Service
	change  func(*site)
	to      string // "" is the Service
}

// anotherService is the one that is closed.
const anotherService = "shop/web"

func closings() map[string]closing {
	small := labelled("pool", "small")
	lasting := func(addr string, state edge.AddressState) func(*site) {
		return func(s *site) {
			s.Addresses = map[netip.Addr]edge.AddressState{netip.MustParseAddr(addr): state}
		}
	}
	return map[string]closing{
		"":                     {service: service(anotherService, 0, func(s *edge.Service) { s.Class = "example.org/other" })},
		"AnnotationInvalid":    {service: service(anotherService, 0, annotate("target", "moon"))},
		"SourceRangesInvalid":  {service: service(anotherService, 0, func(s *edge.Service) { s.SourceRanges = []string{"all"} })},
		"NoZone":               {service: service(anotherService, 0, annotate("zones", ""))},
		"UnknownZone":          {service: service(anotherService, 0, annotate("zones", "lan2"))},
		"ZoneNotAllowed":       {service: service(anotherService, 0, annotate("zones", "internet"))},
		"PortConflict":         {service: service(anotherService, 0, port(22))},
		"ProtocolNotSupported": {service: service(anotherService, 0, over(edge.SCTP))},
		"NoTarget":             {service: service(anotherService, 0, annotate("target", "address"))},
		"NotWithNAT":           {service: service(anotherService, 0, kernel), file: strings.Replace(siteFile, "kubernetes:\n", "kubernetes:\n  maxConnections: 10\n", 1)},
		"NoNAT":                {service: service(anotherService, 0, kernel), change: func(s *site) { s.NoNAT = "the nft command is not installed" }},
		"NoForwarding":         {service: service(anotherService, 0, kernel), change: func(s *site) { s.NoForwarding4 = true }},
		"NotTransparent":       {service: service(anotherService, 0, annotate("transparent", "true"), annotate("target", "pod")), change: func(s *site) { s.NoTransparency = "it takes CAP_NET_ADMIN" }},
		"NoInterface":          {service: service(anotherService, 0), change: func(s *site) { s.Config.Zones[0].Interfaces = []string{"eth7"} }},
		"CannotListen": {service: service(anotherService, 0), change: func(s *site) {
			s.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 80}}] = "address already in use"
		}},
		"NameNotResolved": {service: service(anotherService, 0), change: func(s *site) { s.Hosts = nil }, to: "named-host"},
		"PoolExhausted": {service: service(anotherService, 0, labelled("pool", "theirs")), change: func(s *site) {
			s.Cluster.Services = append(s.Cluster.Services, service("shop/older", 9, labelled("pool", "theirs"), port(81)))
		}},
		"AddressNotInPool":  {service: service(anotherService, 0, annotate("addresses", "10.11.12.99"))},
		"AddressNotAllowed": {service: service(anotherService, 0, annotate("addresses", "10.11.12.80"))},
		"AddressInUse": {service: service(anotherService, 0, small, annotate("addresses", "10.11.12.64")), change: func(s *site) {
			s.Cluster.Services = append(s.Cluster.Services, service("shop/older", 9, small, port(81), annotate("addresses", "10.11.12.64")))
		}},
		"AddressConflict": {service: service(anotherService, 0, small, annotate("addresses", "10.11.12.64")), change: lasting("10.11.12.64", edge.AddressState{Conflict: "52:54:00:00:00:07"})},
		"AddressPending":  {service: service(anotherService, 0, small), change: lasting("10.11.12.64", edge.AddressState{})},
		"FamilyMissing": {service: service(anotherService, 0, annotate("zones", "internet"), func(s *edge.Service) {
			s.Namespace, s.IPFamilies, s.IPFamilyPolicy = "public", []string{"IPv4", "IPv6"}, "RequireDualStack"
		})},
	}
}

// Whatever closes a row is explained: by the link of the chain that it is about,
// the reason, and what would be right.
func TestEveryReasonToBeClosedIsExplained(t *testing.T) {
	for code, c := range closings() {
		t.Run(code, func(t *testing.T) {
			file := c.file
			if file == "" {
				file = siteFile
			}
			s := newSite(t, file, c.service)
			if c.change != nil {
				c.change(s)
			}
			facts := s.facts()
			i := slices.IndexFunc(facts.State.Exposures, func(row desired.Exposure) bool {
				return row.Code == code && !row.Open && (row.Service == c.service.Key() || c.to == row.Name)
			})
			if i < 0 {
				t.Fatal("nothing is closed for it")
			}
			row := facts.State.Exposures[i]
			to, from := c.to, row.Zone
			if to == "" {
				to = c.service.Key()
			}
			if from == "" {
				from = "home"
			}
			answer, err := Explain(facts, Question{From: from, To: to})
			if err != nil {
				t.Fatal(err)
			}
			checkAnswer(t, answer)
			w := answer.Ways[0]
			last := w.Steps[len(w.Steps)-1]
			if code == "NoInterface" { // which is said of the zone
				if w.Verdict != NotReachable || last.Source != "interface/eth7" {
					t.Errorf("%+v", w)
				}
				return
			}
			if w.Verdict != NotReachable || last.OK || last.Check != checks[code] || last.What != row.Reason || last.Source == "" {
				t.Errorf("verdict %s, the last step %+v; want one about %q that says %q", w.Verdict, last, checks[code], row.Reason)
			}
			t.Logf("%s: %s; %s (%s)", last.Check, w.Summary, w.Remedy, last.Source)
		})
	}
}

// No code of desired is without an explanation: they are taken from its source.
func TestEveryCodeHasItsCheck(t *testing.T) {
	want := codesOf(t, "../desired", "../pools")
	if len(want) < 20 {
		t.Fatalf("only %q were found", want)
	}
	for _, have := range [][]string{slices.Collect(maps.Keys(checks)), slices.Collect(maps.Keys(closings()))} {
		slices.Sort(have)
		if have = have[1:]; !slices.Equal(have, want) {
			t.Errorf("there are checks or examples for\n%q, and codes\n%q", have, want)
		}
	}
}

var codeForm = regexp.MustCompile(`^[A-Z][a-z]+([A-Z]+[a-z]*)+$`)

// codesOf finds what is written where codes are: in refusal{...}, in closed(row,
// ...), in row.code = ..., and as constants.
func codesOf(t *testing.T, dirs ...string) []string {
	t.Helper()
	found := map[string]bool{}
	add := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil && codeForm.MatchString(text) {
				found[text] = true
			}
		}
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if name, ok := n.Type.(*ast.Ident); ok && name.Name == "refusal" && len(n.Elts) > 0 {
						add(n.Elts[0])
					}
				case *ast.CallExpr:
					if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "closed" && len(n.Args) > 1 {
						add(n.Args[1])
					}
				case *ast.AssignStmt:
					for i, left := range n.Lhs {
						if s, ok := left.(*ast.SelectorExpr); ok && s.Sel.Name == "code" && len(n.Rhs) == len(n.Lhs) {
							add(n.Rhs[i])
						}
					}
				case *ast.GenDecl:
					if n.Tok == token.CONST {
						for _, spec := range n.Specs {
							for _, v := range spec.(*ast.ValueSpec).Values {
								add(v)
							}
						}
					}
				}
				return true
			})
		}
	}
	// A type of conditions, and what one says of a Service that is open.
	delete(found, "LoadBalancerPortsError")
	delete(found, "NoAddress")
	return slices.Sorted(maps.Keys(found))
}
