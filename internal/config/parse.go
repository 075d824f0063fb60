package config

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

// L4ProxyVersion is what an l4proxy file says in apiVersion.
const L4ProxyVersion = "v1"

// MaxFileSize is how many bytes a file may have.
const MaxFileSize = 1 << 20

// Parse reads files as one configuration: zones and frontends append. It
// returns a Config, or every problem there is, in file order.
//
//	cfg, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: data}})
//	for _, p := range problems {
//		fmt.Println(p) // gatehouse.yaml:5:11: frontends[0].zones[0]: no zone named "lan2"; have lan
//	}
func Parse(files []File) (*Config, []edge.Problem) {
	p := &parser{zoneNamed: map[string]bool{}, members: map[string]member{}, names: map[string]named{}, blocks: map[string]edge.Pos{}}
	p.cfg.StopTimeout = DefaultStopTimeout
	for i, f := range files {
		p.parseFile(&file{parser: p, index: i, name: f.Name}, f.Data)
	}
	p.checkZoneNames()
	p.checkLinks()
	p.checkOverlaps()
	p.checkReservedZones()
	p.checkDHCP()
	p.checkDNS()
	if len(p.found) == 0 {
		return &p.cfg, nil
	}
	slices.SortStableFunc(p.found, func(a, b found) int { return a.compare(b) })
	problems := make([]edge.Problem, len(p.found))
	for i, f := range p.found {
		problems[i] = f.Problem
	}
	return nil, problems
}

// A parser holds what is known of all files.
type parser struct {
	cfg   Config
	found []found

	// zonesUnknown is set when a part of the input that may hold zones could
	// not be read: whether a zone exists is then not asked.
	zonesUnknown bool
	zoneRefs     []text
	zoneNamed    map[string]bool
	members      map[string]member   // by interface
	names        map[string]named    // of frontends
	blocks       map[string]edge.Pos // what may be there once, such as kubernetes
	wordZones    []value             // zones whose names mean something else in policies
	claims       []claim
	pooled       []pooledRange

	dhcpRanges      []dhcpRange
	dhcpZones       []value // those that have a DHCP server, where they say so
	dhcpReserved    []keptFor
	relayedNetworks []RelayedNetwork
	links           []linkValue

	dnsRefs dnsRefs
	records []fields // of dns, as DNS.Records has them
}

// named is where a frontend's name was taken, and whether nobody wrote it.
type named struct {
	pos  edge.Pos
	made bool
}

// found is a problem with what sorts it: two files can have the same name.
type found struct {
	edge.Problem
	file int
}

func (a found) compare(b found) int {
	switch {
	case a.file != b.file:
		return a.file - b.file
	case a.Pos.Line != b.Pos.Line:
		return a.Pos.Line - b.Pos.Line
	default:
		return a.Pos.Col - b.Pos.Col
	}
}

// A file is one of the files, while it is read.
type file struct {
	*parser
	index int
	name  string
}

func (f *file) problem(pos edge.Pos, path, what, remedy string) {
	f.found = append(f.found, found{edge.Problem{Pos: pos, Path: path, What: what, Remedy: remedy}, f.index})
}

func (p *parser) parseFile(f *file, data []byte) {
	root := f.root(data)
	if root == nil {
		p.zonesUnknown = true
		return
	}
	v := value{file: f, node: root}
	if root.Kind != yaml.MappingNode {
		p.zonesUnknown = true
		v.problem("the file must be a map, not "+describe(root), "start it with apiVersion: "+APIVersion)
		return
	}
	switch f.format(v) {
	case APIVersion:
		f.gatehouse(v)
	case L4ProxyVersion:
		f.l4proxy(v)
	default:
		p.zonesUnknown = true
	}
}

// format returns the apiVersion of a file. If there is none it says so, and
// goes by what l4proxy files have and others do not: what else is wrong is
// worth knowing too.
func (f *file) format(root value) string {
	for i := 0; i+1 < len(root.node.Content); i += 2 {
		if root.node.Content[i].Value != "apiVersion" {
			continue
		}
		v := value{file: f, node: root.node.Content[i+1], path: "apiVersion", spec: topBlock.field("apiVersion")}
		if v.node.Kind != yaml.ScalarNode || v.node.Tag == "!!null" {
			v.text()
			return ""
		}
		if got := v.node.Value; got == APIVersion || got == L4ProxyVersion {
			return got
		}
		v.problem("no format "+quote(v.node.Value), "write "+APIVersion+", or "+L4ProxyVersion+" for an l4proxy file")
		return ""
	}
	guess := APIVersion
	if hasBind(root.node) {
		guess = L4ProxyVersion
	}
	f.problem(root.pos(), "apiVersion", "missing", "write apiVersion: "+guess)
	return guess
}

// hasBind says whether some frontend has the field bind.
func hasBind(root *yaml.Node) bool {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "frontends" {
			continue
		}
		for _, frontend := range root.Content[i+1].Content {
			for j := 0; j+1 < len(frontend.Content); j += 2 {
				if frontend.Content[j].Value == "bind" {
					return true
				}
			}
		}
	}
	return false
}
