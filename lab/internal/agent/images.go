package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"e13.dev/gatehouse/lab/site"
)

// images are the programs that stand for images besides the lab's own: site.Options.Images.
func (a *Agent) images() map[string][]string {
	images := map[string][]string{}
	data, err := os.ReadFile(filepath.Join(a.cfg.Dir, site.ImagesFile))
	if err == nil {
		err = json.Unmarshal(data, &images)
	}
	if err != nil && !os.IsNotExist(err) {
		a.log.Error("read images", "error", err)
	}
	return images
}

// program turns the absolute path that an image's program has in the image, /NAME, or its name alone, into where it is on
// this machine.
func (a *Agent) program(argv []string) []string {
	for _, p := range a.images() {
		if len(argv) > 0 && len(p) > 0 && strings.TrimPrefix(argv[0], "/") == filepath.Base(p[0]) {
			return append([]string{p[0]}, argv[1:]...)
		}
	}
	return argv
}

// imageName is an image without its registry's default name, tag and digest.
func imageName(image string) string {
	image, _, _ = strings.Cut(strings.TrimPrefix(image, "docker.io/"), "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image
}

// wayIn is the command line that gets a program into a pod: its network, its host name, its /run and names.
func (a *Agent) wayIn(rec site.PodRecord, dir string, confinement ...string) []string {
	netns, hostname := rec.Netns, rec.Hostname
	binds := []string{filepath.Join(dir, "run") + ":/run"}
	if netns == "" {
		netns, hostname = "ghlab-"+a.cfg.Lab+"-"+a.cfg.Node, a.cfg.Node
	} else if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		binds = append(binds, filepath.Join(dir, "resolv.conf")+":/etc/resolv.conf")
	}
	lab := filepath.Join(a.cfg.Dir, "bin", "lab")
	args := site.EnterArgs(netns, binds, nil)
	return slices.Concat([]string{lab}, args[:len(args)-1], confinement, []string{"--hostname", hostname, "--"})
}
