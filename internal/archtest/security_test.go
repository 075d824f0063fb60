package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/security.md promises is shown by tests, and those have to be there.
func TestWhatSecurityNamesIsThere(t *testing.T) {
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, root := range []string{"../../internal", "../../lab/e2e", "../../lab/home"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			all.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(string(doc), -1)
	if len(names) < 40 {
		t.Errorf("only %d tests are named", len(names))
	}
	for _, name := range names {
		if !strings.Contains(all.String(), "\nfunc "+name[1]+"(") {
			t.Errorf("docs/security.md names %s, which is nowhere", name[1])
		}
	}
	for _, script := range regexp.MustCompile("script `([a-z]+)`").FindAllStringSubmatch(string(doc), -1) {
		if _, err := os.Stat("../cli/testdata/" + script[1] + ".txtar"); err != nil {
			t.Error(err)
		}
	}
}
