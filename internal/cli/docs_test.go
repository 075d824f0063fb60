package cli

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

var (
	root = filepath.Join("..", "..")
	docs = filepath.Join(root, "docs")
	link = regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	// Pictures in HTML, which can be for the dark, or have a size.
	htmlPicture = regexp.MustCompile(`<(?:img|source) [^>]*(?:src|srcset)="([^"]*)"`)
	// What is code is no link.
	codeBlock = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	codeSpan  = regexp.MustCompile("`[^`\n]*`")
)

// documents are the texts of all pages by path: those of the docs, at any depth,
// and those at the top of the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	files := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md"), filepath.Join(root, "CONTRIBUTING.md")}
	err := filepath.WalkDir(docs, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(data)
	}
	return texts
}

// links are the targets of a page, with their anchors.
func links(text string) [][2]string {
	text = codeSpan.ReplaceAllString(codeBlock.ReplaceAllString(text, ""), "code")
	var all [][2]string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if m[1] != "" || m[2] != "" {
			all = append(all, [2]string{m[1], strings.TrimPrefix(m[2], "#")})
		}
	}
	for _, m := range htmlPicture.FindAllStringSubmatch(text, -1) {
		all = append(all, [2]string{m[1], ""})
	}
	return all
}

// Links between the documents lead somewhere, headings included.
func TestLinksInTheDocsLeadSomewhere(t *testing.T) {
	texts := documents(t)
	found := 0
	for file, text := range texts {
		for _, l := range links(text) {
			found++
			target := file
			if l[0] != "" {
				target = filepath.Join(filepath.Dir(file), l[0])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, l[0])
				continue
			}
			if l[1] != "" && !headings(texts[target])[l[1]] {
				t.Errorf("%s links to %s#%s, which is no heading there", file, l[0], l[1])
			}
		}
	}
	if found < 300 {
		t.Errorf("found %d links in the documents: the test does not look right", found)
	}
}

// headings are the anchors that forges make of a document's headings.
func headings(text string) map[string]bool {
	anchors := map[string]bool{}
	for line := range strings.Lines(codeBlock.ReplaceAllString(text, "")) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors[strings.ReplaceAll(anchor, " ", "-")] = true
		}
	}
	return anchors
}

// Who begins at docs/README.md finds every page.
func TestNoPageIsOrphaned(t *testing.T) {
	texts := documents(t)
	start := filepath.Join(docs, "README.md")
	reached := map[string]bool{start: true}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		for _, l := range links(texts[queue[0]]) {
			target := filepath.Join(filepath.Dir(queue[0]), l[0])
			// A page of the docs leads on; what is outside is not of the site.
			if _, page := texts[target]; page && strings.HasPrefix(target, docs) && !reached[target] {
				reached[target] = true
				queue = append(queue, target)
			}
		}
	}
	for file := range texts {
		if strings.HasPrefix(file, docs) && !reached[file] {
			t.Errorf("no way leads from docs/README.md to %s", file)
		}
	}
}

// Pictures that nobody shows are left over.
func TestPicturesAreShown(t *testing.T) {
	shown := map[string]bool{}
	for file, text := range documents(t) {
		for _, l := range links(text) {
			shown[filepath.Join(filepath.Dir(file), l[0])] = true
		}
	}
	err := filepath.WalkDir(docs, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && slices.Contains([]string{".svg", ".png"}, filepath.Ext(path)) && !shown[path] {
			t.Errorf("no page shows %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every command has its section in the documents.
func TestEveryCommandIsDocumented(t *testing.T) {
	text := documents(t)[filepath.Join(docs, "commands.md")]
	for _, cmd := range newRoot(os.Stdout, os.Stderr).Commands() {
		if !strings.Contains(text, fmt.Sprintf("## `gatehouse %s`", cmd.Name())) {
			t.Errorf("docs/commands.md has no section for %s", cmd.Name())
		}
	}
}

// Every annotation that is read is in docs/annotations.md, and no other.
func TestAnnotationsAreDocumented(t *testing.T) {
	source, err := os.ReadFile(filepath.Join("..", "desired", "request.go"))
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	for _, m := range regexp.MustCompile(`edge\.AnnotationPrefix \+ "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
		read[m[1]] = true
	}
	page := documents(t)[filepath.Join(docs, "annotations.md")]
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(page, -1) {
		told[m[1]] = true
	}
	if len(read) < 10 || !reflect.DeepEqual(read, told) {
		t.Errorf("annotations that are read: %v; in docs/annotations.md: %v", keys(read), keys(told))
	}
	class := strings.TrimPrefix(config.DefaultClass, edge.AnnotationPrefix)
	for file, text := range documents(t) {
		for _, m := range regexp.MustCompile(regexp.QuoteMeta(edge.AnnotationPrefix)+`([a-z-]+)[:=]`).FindAllStringSubmatch(text, -1) {
			if !read[m[1]] && m[1] != class {
				t.Errorf("%s shows annotation %s, which nobody reads", file, m[1])
			}
		}
	}
}

func keys(m map[string]bool) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// Every field of what scripts read is documented.
func TestFieldsOfTheAPIAreDocumented(t *testing.T) {
	texts := documents(t)
	told := map[string]bool{}
	for _, span := range codeSpan.FindAllString(codeBlock.ReplaceAllString(texts[filepath.Join(docs, "api.md")]+texts[filepath.Join(docs, "commands.md")], ""), -1) {
		for _, word := range regexp.MustCompile(`\w+`).FindAllString(span, -1) {
			told[word] = true
		}
	}
	seen := map[reflect.Type]bool{}
	var look func(reflect.Type)
	look = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array:
			look(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] || typ.Implements(reflect.TypeFor[json.Marshaler]()) || !strings.Contains(typ.PkgPath(), "gatehouse") {
			return
		}
		seen[typ] = true
		for field := range typ.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "-" || !field.IsExported() {
				continue
			}
			if name != "" && !told[name] {
				t.Errorf("%s.%s: field %q is in neither docs/api.md nor docs/commands.md", typ, field.Name, name)
			}
			look(field.Type)
		}
	}
	look(reflect.TypeFor[status.Status]())
	look(reflect.TypeFor[explain.Answer]())
	if len(seen) < 15 {
		t.Errorf("looked at %d types: the test does not look right", len(seen))
	}
}

// Each alert has a section that says what to do.
func TestAlertsHaveTheirSection(t *testing.T) {
	rules, err := os.ReadFile(filepath.Join(root, "deploy", "prometheus", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	page := documents(t)[filepath.Join(docs, "troubleshooting.md")]
	alerts := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1) {
		alerts[m[1]] = true
		if !strings.Contains(page, "\n### "+m[1]+"\n") {
			t.Errorf("docs/troubleshooting.md has no section ### %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (Gatehouse\w+)$`).FindAllStringSubmatch(page, -1) {
		if !alerts[m[1]] {
			t.Errorf("docs/troubleshooting.md tells of %s, which is no alert", m[1])
		}
	}
	if len(alerts) < 5 {
		t.Errorf("found %d alerts: the test does not look right", len(alerts))
	}
}
