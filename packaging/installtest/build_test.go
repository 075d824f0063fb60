package installtest

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"e13.dev/gatehouse/packaging/internal/build"
)

// source is where the source is that is packaged.
func source(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func command(t *testing.T, dir string, env []string, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-euc", script, "bash"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out.String(), problem.String())
	}
	return out.String()
}

const lockFile = "packaging/image.lock"

// currentLock is the lock of a copy of the source, with packages that there are.
// A mirror keeps no old ones: once Debian has mended one, the lock that is
// committed is to be renewed. That is no fault of what is tested here, which
// goes on with the packages of today.
func currentLock(t *testing.T, dir, cache string, env []string) []byte {
	t.Helper()
	try := exec.Command("go", "run", "./cmd/image", "-root", "..", "-out", t.TempDir(), "-cache", cache)
	try.Dir, try.Env = filepath.Join(dir, "packaging"), append(os.Environ(), env...)
	if said, err := try.CombinedOutput(); err != nil && strings.Contains(string(said), "is at none of the mirrors") {
		t.Logf("%s is out of date: run make image-lock and commit it. It goes on with what the mirror has now.\n%s", lockFile, said)
		command(t, dir, nil, "scripts/image-lock")
	}
	lock, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// Whoever builds a release gets the same bytes: from a copy of the source that
// knows nothing of git, in another directory, with another umask and other
// times of files.
func TestEverybodyBuildsTheSame(t *testing.T) {
	need(t)
	root := source(t)
	release, err := build.Of(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"VERSION=" + release.Version, "COMMIT=" + release.Commit, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", release.Time.Unix())}
	cache := os.Getenv("GATEHOUSE_IMAGE_CACHE")
	if cache == "" {
		cache = filepath.Join(root, "dist", "cache")
	}
	const make = `umask "$1"; cd packaging; go run ./cmd/package -root .. -out ../dist; go run ./cmd/image -root .. -out ../dist -cache "$2"; cd ../dist; sha256sum gatehouse*`
	var copies, sums []string
	var lock []byte
	for n, umask := range []string{"022", "077"} {
		dir := filepath.Join(t.TempDir(), strings.Repeat("other", n+1))
		command(t, root, nil, `mkdir "$1"; git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done | tar c --null -T - | tar xm -C "$1"`, dir)
		if n == 0 {
			lock = currentLock(t, dir, cache, env)
		} else if err := os.WriteFile(filepath.Join(dir, lockFile), lock, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("building in %s", dir)
		copies, sums = append(copies, filepath.Join(dir, "dist")), append(sums, command(t, dir, env, make+" ", umask, cache))
	}
	last := func(s string) string { return s[strings.LastIndex(s, "==>"):] }
	if a, b := strings.SplitN(last(sums[0]), "\n", 2)[1], strings.SplitN(last(sums[1]), "\n", 2)[1]; a != b || strings.Count(a, "\n") != 8 {
		t.Fatalf("two builds:\n%s\n%s", a, b)
	}
	dist := copies[0]
	t.Run("checksums", func(t *testing.T) {
		if said := command(t, dist, nil, "sha256sum -c SHA256SUMS; sha256sum -c *.tar.sha256"); strings.Count(said, ": OK") != 7 {
			t.Fatalf("%s", said)
		}
	})
	t.Run("what a package says and has", func(t *testing.T) {
		for _, architecture := range build.Architectures {
			said := command(t, dist, nil, `dpkg-deb -f gatehouse_*_"$1".deb Package Architecture; dpkg-deb -x gatehouse_*_"$1".deb x-"$1"; tar xf gatehouse_*_"$1".tar.gz; cmp x-"$1"/usr/bin/gatehouse gatehouse_*_"$1"/gatehouse`, architecture)
			if said != "Package: gatehouse\nArchitecture: "+architecture+"\n" {
				t.Errorf("%s", said)
			}
		}
	})
	t.Run("lintian", func(t *testing.T) {
		if said := command(t, dist, nil, "lintian --fail-on error,warning *.deb 2>&1 | grep -v 'root privileges' || true"); said != "" {
			t.Errorf("%s", said)
		}
	})
	for _, architecture := range build.Architectures {
		t.Run("bill of materials of "+architecture, func(t *testing.T) { billIsOfProgram(t, dist, architecture) })
	}
	t.Run("image", func(t *testing.T) { imageWorks(t, dist) })
}

// A bill, read back, names what Go says is in the program, and nothing else.
func billIsOfProgram(t *testing.T, dist, architecture string) {
	info, err := buildinfo.ReadFile(filepath.Join(dist, "x-"+architecture, "usr/bin/gatehouse"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"std " + strings.TrimPrefix(info.GoVersion, "go")}
	for _, m := range info.Deps {
		want = append(want, m.Path+" "+m.Version)
	}
	for _, s := range info.Settings {
		if s.Key == "GOARCH" && s.Value != architecture || s.Key == "CGO_ENABLED" && s.Value != "0" || strings.HasPrefix(s.Key, "vcs") {
			t.Errorf("the program is built with %s=%s", s.Key, s.Value)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dist, "gatehouse_*_"+architecture+".cdx.json"))
	if len(files) != 1 {
		t.Fatalf("bills %v", files)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range *bom.Components {
		got = append(got, c.Name+" "+c.Version)
		if c.Licenses == nil || len(*c.Licenses) == 0 {
			t.Errorf("%s has no licence", c.Name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the bill names\n%s\nthe program has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	sum := command(t, dist, nil, `sha256sum < x-"$1"/usr/bin/gatehouse | cut -d' ' -f1`, architecture)
	if hashes := *bom.Metadata.Component.Hashes; hashes[0].Value != strings.TrimSpace(sum) {
		t.Errorf("the bill is of %s, the program is %s", hashes[0].Value, sum)
	}
}

// The score in the docs is what systemd says of the unit, and it finds nothing
// wrong with it.
func TestUnitIsAsTheDocsSay(t *testing.T) {
	need(t)
	root := source(t)
	docs, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	command(t, root, nil, `cp deploy/gatehouse.service "$1"; mkdir -p "$1/gatehouse.service.d"`, dir)
	version := strings.Fields(command(t, dir, nil, "systemd-analyze --version"))[1]
	score := regexp.MustCompile(`exposure level for \S+: (\S+) (\S+)`)
	for _, tt := range []struct{ name, before string }{
		{"the unit alone", "true"},
		{"with net-admin.conf", `sed -n '/^[A-Z]/p' "` + root + `/deploy/gatehouse.service.d/net-admin.conf" > more; sed -i '/^SystemCallArchitectures/r more' gatehouse.service`},
		// What is said last counts, as with a file beside the unit.
		{"with links.conf, too", `sed -n '/^[A-Z]/p' "` + root + `/deploy/gatehouse.service.d/links.conf" > more; sed -i '/^SystemCallArchitectures/r more' gatehouse.service`},
	} {
		said := command(t, dir, nil, tt.before+`; systemd-analyze security --offline=true --no-pager ./gatehouse.service`)
		m := score.FindStringSubmatch(said)
		if m == nil {
			t.Fatalf("%s", said)
		}
		line := fmt.Sprintf("| %s | %s %s |", tt.name, m[1], m[2])
		if version == "252" && !strings.Contains(string(docs), line) {
			t.Errorf("docs/install.md has to say %q", line)
		}
		t.Logf("systemd %s: %s", version, line)
	}
	for _, directive := range regexp.MustCompile(`(?m)^([A-Z]\w+)=`).FindAllStringSubmatch(command(t, root, nil, `sed -n '/^User=/,/^LimitCORE/p' deploy/gatehouse.service`), -1) {
		if !strings.Contains(string(docs), "`"+directive[1]) {
			t.Errorf("docs/install.md does not say what %s is for", directive[1])
		}
	}
}
