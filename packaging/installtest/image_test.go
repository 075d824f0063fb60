package installtest

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"e13.dev/gatehouse/packaging/internal/build"
)

// imageWorks looks at the image in dist, and runs the one of this machine's
// architecture.
func imageWorks(t *testing.T, dist string) {
	archive, _ := filepath.Glob(filepath.Join(dist, "gatehouse-image_*.tar"))
	if len(archive) != 1 {
		t.Fatalf("images %v", archive)
	}
	dir := t.TempDir()
	command(t, dir, nil, `mkdir layout; tar x -C layout -f "$1"`, archive[0])
	// Other people's program reads it, and checks every digest as it copies.
	for _, architecture := range build.Architectures {
		command(t, dir, nil, `skopeo --override-os linux --override-arch "$2" copy --quiet "oci-archive:$1" "dir:$2"`, archive[0], architecture)
	}
	top, err := layout.ImageIndexFromPath(filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	// As a registry would get it: with the digest that it has here.
	command(t, dir, nil, `skopeo copy --all --quiet "oci-archive:$1" oci:copied; grep -q "$2" copied/index.json`, archive[0], m.Manifests[0].Digest.String())
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	found := map[string]v1.Image{}
	for _, d := range m.Manifests {
		if found[d.Platform.Architecture], err = index.Image(d.Digest); err != nil {
			t.Fatal(err)
		}
	}
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(architecture, func(t *testing.T) { everyLibraryIsThere(t, found[architecture], machine) })
	}
	t.Run("runs", func(t *testing.T) { imageRuns(t, found[runtime.GOARCH]) })
}

// everyLibraryIsThere: each program and library in it is of the architecture,
// and what it needs is there.
func everyLibraryIsThere(t *testing.T, img v1.Image, machine elf.Machine) {
	files := mutate.Extract(img)
	defer files.Close()
	var needed, has []string
	programs := 0
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		has = append(has, path.Base(h.Name))
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := elf.NewFile(bytes.NewReader(data)); err == nil {
			programs++
			if f.Machine != machine {
				t.Errorf("%s is for %s", h.Name, f.Machine)
			}
			libraries, _ := f.ImportedLibraries()
			needed = append(needed, libraries...)
		}
	}
	if programs < 14 {
		t.Errorf("only %d programs and libraries", programs)
	}
	for _, name := range needed {
		if !slices.Contains(has, name) {
			t.Errorf("%s is needed, and not there", name)
		}
	}
	for _, name := range []string{"gatehouse", "nft", "ca-certificates.crt", "protocols", "third-party-licenses"} {
		if !slices.Contains(has, name) {
			t.Errorf("there is no %s", name)
		}
	}
}

// imageRuns has a runtime of containers run it as docs/install.md says: as root
// with three capabilities, no way to more of them, and nothing to write to but
// its own directories.
func imageRuns(t *testing.T, img v1.Image) {
	b := newBox(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b.copyIn(self, "/usr/local/bin/helper")
	files := mutate.Extract(img)
	defer files.Close()
	b.run("mkdir -p /tmp/gatehouse/rootfs /etc/gatehouse /var/lib/gatehouse")
	unpack := b.command("tar x -C /tmp/gatehouse/rootfs")
	unpack.Stdin = files
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v %s", err, out)
	}
	cables(b)
	b.put("/etc/gatehouse/gatehouse.yaml", fmt.Sprintf(config, administered))
	b.put("/etc/gatehouse/kubeconfig", kubeconfig)
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	with := func(args ...string) {
		b.put("/tmp/gatehouse/config.json", runtimeConfig(t, c, args))
	}
	with("version")
	if said := b.run("crun --cgroup-manager=disabled run -b /tmp/gatehouse once"); !strings.HasPrefix(said, "gatehouse ") || strings.Contains(said, "unknown") {
		t.Fatalf("version: %s", said)
	}
	with("check", "-c", "/etc/gatehouse/gatehouse.yaml")
	b.run("crun --cgroup-manager=disabled run -b /tmp/gatehouse once")
	with(c.Config.Cmd...)
	b.run("systemd-run --quiet --unit container crun --cgroup-manager=disabled run -b /tmp/gatehouse gatehouse")
	for _, door := range []struct{ what, address, sees string }{
		{"the relay", "10.9.1.1:80", "10.9.2.1"},
		{"nat", "10.9.1.1:81", "10.9.1.2"},
		{"transparent", "10.9.1.1:82", "10.9.1.2"},
		{"an address of a pool", pooledAddress + ":80", "10.9.2.1"},
	} {
		b.until(15*time.Second, door.what, func() error {
			if got := strings.TrimSpace(b.run("ip netns exec client helper help ask %s | cut -d' ' -f2", door.address)); got != door.sees {
				return fmt.Errorf("%s: the backend sees %q, want %q\n%s", door.address, got, door.sees, b.try("journalctl --no-pager -u container | tail -20"))
			}
			return nil
		})
	}
	b.same("status, from inside", b.run("crun exec gatehouse /usr/bin/gatehouse status | grep -c ready,"), "1")
	b.run("systemctl stop container")
}

// runtimeConfig is what a runtime is told about a container, the OCI's
// config.json: what Docker and Kubernetes make of the flags in docs/install.md.
func runtimeConfig(t *testing.T, c *v1.ConfigFile, args []string) string {
	t.Helper()
	rights := []string{"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_NET_ADMIN"}
	mount := func(destination, kind, source string, options ...string) map[string]any {
		return map[string]any{"destination": destination, "type": kind, "source": source, "options": options}
	}
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]int{"uid": 0, "gid": 0}, "args": append(slices.Clone(c.Config.Entrypoint), args...), "env": c.Config.Env, "cwd": "/",
			"capabilities":    map[string]any{"bounding": rights, "effective": rights, "permitted": rights},
			"noNewPrivileges": true,
		},
		"root":     map[string]any{"path": "rootfs", "readonly": true},
		"hostname": "container",
		"mounts": []any{
			mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=64k"),
			mount("/run/gatehouse", "tmpfs", "tmpfs", "nosuid", "nodev", "noexec", "mode=750"),
			mount("/etc/gatehouse", "bind", "/etc/gatehouse", "bind", "ro"),
			mount("/var/lib/gatehouse", "bind", "/var/lib/gatehouse", "bind", "rw"),
		},
		// The network is the machine's.
		"linux": map[string]any{"namespaces": []any{map[string]string{"type": "pid"}, map[string]string{"type": "mount"}, map[string]string{"type": "ipc"}, map[string]string{"type": "uts"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
