package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// block is a piece of code in a page.
type block struct {
	page, lang, text string
	line             int
	notRun           string // why nobody runs it
}

var (
	fenced = regexp.MustCompile("(?ms)^(?:(?P<indent> *)<!-- not run: (?P<why>[^>]*?) -->\n)?(?P<in> *)```(?P<lang>[a-z]*)\n(?P<text>.*?)^ *```$")
	prompt = regexp.MustCompile(`^(\$|#|edge#|home\$|inet\$) (.+)$`)
)

// blocks are those of all pages. A comment before one says why it is not run.
func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	for page, text := range documents(t) {
		for _, m := range fenced.FindAllStringSubmatchIndex(text, -1) {
			part := func(name string) string {
				i := 2 * fenced.SubexpIndex(name)
				if m[i] < 0 {
					return ""
				}
				return text[m[i]:m[i+1]]
			}
			body := strings.ReplaceAll("\n"+part("text"), "\n"+part("in"), "\n")[1:]
			all = append(all, block{page: page, lang: part("lang"), text: body, line: 1 + strings.Count(text[:m[0]], "\n"), notRun: part("why")})
		}
	}
	return all
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func (b block) isConfig() bool {
	return b.lang == "yaml" && regexp.MustCompile(`(?m)^apiVersion: (gatehouse\.e13\.dev/v1|v1\nfrontends:)$`).MatchString(b.text)
}

// A configuration that the documents show is one that check accepts.
func TestConfigurationsInTheDocsAreGood(t *testing.T) {
	found := 0
	for _, b := range blocks(t) {
		if !b.isConfig() {
			continue
		}
		found++
		if _, problems := config.Parse([]config.File{{Name: b.String(), Data: []byte(b.text)}}); len(problems) > 0 {
			t.Errorf("%s shows a configuration with problems: %v", b, problems)
		}
	}
	if found < 15 {
		t.Errorf("found %d configurations in the documents: the test does not look right", found)
	}
}

// A part of a configuration that the documents show, "kubernetes: ...", is good
// in one that has the zones of the site.
func TestPartsOfConfigurationsInTheDocsAreGood(t *testing.T) {
	found := 0
	for _, b := range blocks(t) {
		if b.lang != "yaml" || b.isConfig() || !regexp.MustCompile(`^(zones|frontends|kubernetes|pools|admin|stateDir|stopTimeout):`).MatchString(b.text) {
			continue
		}
		found++
		file := "apiVersion: gatehouse.e13.dev/v1\n"
		if !strings.HasPrefix(b.text, "zones:") && !strings.Contains(b.text, "\nzones:") {
			file += siteZones
		}
		if _, problems := config.Parse([]config.File{{Name: b.String(), Data: []byte(file + b.text)}}); len(problems) > 0 {
			t.Errorf("%s shows a part of a configuration with problems: %v", b, problems)
		}
	}
	if found < 2 {
		t.Errorf("found %d parts of configurations in the documents: the test does not look right", found)
	}
}

// What the guide of the home site goes through is the example, word for word and
// all of it but for the lines that need no word.
func TestTheHomeGuideShowsTheExample(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(docs, "..", "examples", "home", "gatehouse.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rest := string(data)
	if _, problems := config.Parse([]config.File{{Name: "examples/home/gatehouse.yaml", Data: data}}); len(problems) > 0 {
		t.Errorf("the example has problems: %v", problems)
	}
	for _, b := range blocks(t) {
		if filepath.Base(b.page) != "home.md" || b.lang != "yaml" {
			continue
		}
		if !strings.Contains(rest, b.text) {
			t.Errorf("%s shows what is not in the example, or not any more:\n%s", b, b.text)
		}
		rest = strings.Replace(rest, b.text, "", 1)
	}
	for line := range strings.Lines(rest) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !regexp.MustCompile(`^(apiVersion|stateDir|admin):`).MatchString(line) {
			t.Errorf("the guide does not show this line of the example: %s", line)
		}
	}
}

const siteZones = "zones:\n  home: {interfaces: [eth1]}\n  internet: {interfaces: [veth0]}\n  cluster: {interfaces: [eth0]}\n"

// A Service that the documents show would be open where it asks to be, with the
// configuration of its page; what else Kubernetes is given can be read.
func TestManifestsInTheDocsAreGood(t *testing.T) {
	all := blocks(t)
	configs := map[string]string{}
	for _, b := range all {
		if b.isConfig() && strings.Contains(b.text, "kubernetes:") && configs[b.page] == "" && filepath.Base(b.page) != "config.md" {
			configs[b.page] = b.text
		}
	}
	services := 0
	for _, b := range all {
		if b.lang != "yaml" || !strings.Contains("\n"+b.text, "\nkind: ") {
			continue
		}
		in := siteOf(t, configs[b.page])
		for i, document := range strings.Split(b.text, "\n---\n") {
			var head metav1.PartialObjectMetadata
			if err := yaml.Unmarshal([]byte(document), &head); err != nil || head.APIVersion == "" || head.Kind == "" || head.Name == "" {
				t.Errorf("%s: document %d is no object of Kubernetes: %v, %+v", b, i, err, head.TypeMeta)
				continue
			}
			if head.Kind != "Service" {
				continue
			}
			services++
			s, err := serviceOf(document)
			if err != nil {
				t.Errorf("%s: %v", b, err)
				continue
			}
			in.Cluster.Services = append(in.Cluster.Services, s)
		}
		state, problems := desired.Settled(in)
		for _, e := range state.Exposures {
			if e.Service != "" && !e.Open {
				t.Errorf("%s: %s would not be open: %s; %s", b, e.Name, e.Reason, e.Remedy)
			}
		}
		for _, p := range problems {
			if strings.HasPrefix(p.Object, "service/") {
				t.Errorf("%s: %s", b, p)
			}
		}
	}
	if services < 8 {
		t.Errorf("found %d Services in the documents: the test does not look right", services)
	}
}

// siteOf is the site of the documents, with the configuration of a page, or one
// that has its zones.
func siteOf(t *testing.T, text string) desired.Inputs {
	t.Helper()
	if text == "" {
		text = "apiVersion: gatehouse.e13.dev/v1\n" + siteZones + "pools: [{name: home, zone: home, addresses: [10.11.12.64-10.11.12.79]}]\nkubernetes: {}\n"
	}
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(text)}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	device := func(name, addr string) edge.Interface {
		return edge.Interface{Name: name, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	in := desired.Inputs{
		Config:     c,
		Interfaces: []edge.Interface{device("eth0", "10.0.0.1/24"), device("eth1", "10.11.12.32/24"), device("veth0", "10.11.12.51/24")},
		Cluster:    &edge.Cluster{},
		Hosts:      map[string]netip.Addr{}, Health: map[edge.Probe]edge.Health{}, Doors: map[edge.Door]string{},
	}
	for i, name := range []string{"w1", "w2", "w3"} {
		in.Cluster.Nodes = append(in.Cluster.Nodes, edge.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(101 + i)})}})
	}
	return in
}

// serviceOf is a Service as the cluster would have it, with a pod on w1. What
// has no class has been given an address by somebody else.
func serviceOf(document string) (edge.Service, error) {
	var in corev1.Service
	if err := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(document)), len(document)).Decode(&in); err != nil {
		return edge.Service{}, err
	}
	if in.Namespace == "" {
		in.Namespace = "default"
	}
	s := edge.Service{
		Namespace: in.Namespace, Name: in.Name, UID: in.Namespace + "/" + in.Name, Created: time.Unix(0, 0),
		Annotations: in.Annotations, Labels: in.Labels, IPFamilies: []string{"IPv4"}, SourceRanges: in.Spec.LoadBalancerSourceRanges,
		Local: in.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: 32000,
	}
	if in.Spec.Type != corev1.ServiceTypeLoadBalancer || len(in.Spec.Ports) == 0 {
		return s, fmt.Errorf("service %s is of type %q, with %d ports", s.Key(), in.Spec.Type, len(in.Spec.Ports))
	}
	if in.Spec.LoadBalancerClass != nil {
		s.Class = *in.Spec.LoadBalancerClass
	} else {
		s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.201")}}
	}
	for i, p := range in.Spec.Ports {
		protocol := edge.TCP
		if p.Protocol != "" {
			protocol = edge.Protocol(p.Protocol)
		}
		s.Ports = append(s.Ports, edge.ServicePort{Name: p.Name, Protocol: protocol, Port: uint16(p.Port), NodePort: uint16(30080 + i)})
		s.Endpoints = append(s.Endpoints, edge.Endpoint{
			PortName: p.Name, Protocol: protocol, Addr: netip.MustParseAddrPort("10.244.1.10:8080"), Node: "w1", Pod: s.Key() + "-1", Ready: true, Serving: true,
		})
	}
	return s, nil
}

// commandsIn are the lines of a block that somebody types.
func commandsIn(b block) []string {
	var all []string
	if b.lang != "console" {
		return nil
	}
	for line := range strings.Lines(b.text) {
		if m := prompt.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			all = append(all, m[2])
		}
	}
	return all
}

// A command line that the documents show is one that the program takes: its
// commands, flags and arguments exist.
func TestCommandLinesInTheDocsExist(t *testing.T) {
	found := 0
	try := func(where, line string) {
		words := wordsOf(line)
		if len(words) == 0 || words[0] != "gatehouse" || words[len(words)-1] == "…" {
			return
		}
		found++
		if err := takes(words[1:]); err != nil {
			t.Errorf("%s: %q: %v", where, line, err)
		}
	}
	for _, b := range blocks(t) {
		for _, line := range commandsIn(b) {
			try(b.String(), line)
		}
	}
	indented := regexp.MustCompile(`(?m)^    (gatehouse [^\n]+)$`)
	for page, text := range documents(t) {
		for _, m := range indented.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
			try(page, m[1])
		}
	}
	span := regexp.MustCompile("`(gatehouse [^`\n]+)`")
	for page, text := range documents(t) {
		for _, m := range span.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
			line := strings.NewReplacer("FILE…", "FILE", "FILE...", "FILE", "gatehouse completion bash|zsh|fish", "gatehouse completion bash").Replace(m[1])
			try(page, line)
		}
	}
	if found < 60 {
		t.Errorf("found %d command lines in the documents: the test does not look right", found)
	}
}

// wordsOf are those of the first command of a shell line, up to what it is piped
// into.
func wordsOf(line string) []string {
	var words []string
	for word := range strings.FieldsSeq(line) {
		if strings.ContainsAny(word, "|>&#;") {
			break
		}
		words = append(words, strings.Trim(word, `'"`))
	}
	return words
}

// takes says whether the program would take these words.
func takes(words []string) error {
	cmd, rest, err := newRoot(io.Discard, io.Discard).Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if help, err := cmd.Flags().GetBool("help"); err == nil && help {
		return nil
	}
	if !cmd.HasParent() {
		return errors.New("no command of that name")
	}
	if len(words) == 1 { // it is spoken of
		return nil
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// The pages whose commands the lab runs (lab/guides).
var runInTheLab = regexp.MustCompile(`^docs/(guides/.*|api|troubleshooting)\.md$`)

// The pages whose commands others see to.
var runElsewhere = map[string]string{
	"README.md":          "its commands are those of docs/guides/five-minutes.md, and targets of make",
	"CONTRIBUTING.md":    "targets of make",
	"docs/benchmarks.md": "make bench writes it",
	"docs/commands.md":   "internal/cli/testdata has what they print",
	"docs/helm.md":       "lab/e2e installs, upgrades and uninstalls both modes of the chart",
	"docs/install.md":    "packaging/installtest installs what it shows",
	"docs/prove.md":      "internal/cli/testdata/prove.txtar and apply.txtar have what they print, TestNetnsOperatorIsLetInAgain what they do",
}

// maxNotRun is how many blocks may have a reason for not being run. More is a
// decision.
const maxNotRun = 20

// Commands that the documents show were run: by the lab, or there is a reason why not.
func TestCommandsInTheDocsAreRun(t *testing.T) {
	notRun := 0
	for _, b := range blocks(t) {
		if b.notRun != "" {
			notRun++
		}
		page, err := filepath.Rel(root, b.page)
		if err != nil {
			t.Fatal(err)
		}
		if len(commandsIn(b)) > 0 && b.notRun == "" && runElsewhere[filepath.ToSlash(page)] == "" && !runInTheLab.MatchString(filepath.ToSlash(page)) {
			t.Errorf("%s: nobody runs these commands; write <!-- not run: WHY --> in the line before", b)
		}
	}
	if notRun > maxNotRun {
		t.Errorf("%d blocks are not run, more than %d", notRun, maxNotRun)
	}
}
