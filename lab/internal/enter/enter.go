// Package enter owns the step from the machine into a host of the lab: this process joins a network namespace, gets
// a view of the file system in which /sys and a few directories are the host's own, and becomes another program.
// It is ip-netns-exec(8) with bind mounts, and keeps the process id, so whoever started it can signal the program.
package enter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/site"
)

// options are those of `lab _enter`.
type options struct {
	binds        []string // SOURCE:TARGET
	scratch      string   // where targets that are missing may be made; empty: they may not
	hostname     string
	capabilities *string // names without CAP_, by commas; nil: all
	readOnly     bool    // the machine's file system
}

// Main is `lab _enter NETNS [--scratch DIR] [--bind SOURCE:TARGET]... [--capabilities NAME,...] [--read-only]
// [--hostname NAME] -- PROGRAM [ARGUMENT]...`; it returns only if it fails. Without a --bind the machine's file system
// stays as it is.
func Main(args []string) error {
	if len(args) == 0 {
		return errors.New("no namespace given")
	}
	netns, args := args[0], args[1:]
	o, args := parse(args)
	if len(args) < 2 || args[0] != "--" {
		return errors.New("no program given")
	}
	argv := args[1:]

	// exec keeps the namespaces of the thread that calls it; main has made sure that this is the first one.
	runtime.LockOSThread()
	fd, err := unix.Open(site.NetnsPath(netns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", netns, err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	if len(o.binds) > 0 {
		if err := mounts(o); err != nil {
			return err
		}
	}
	if o.hostname != "" {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("new UTS namespace: %w", err)
		}
		if err := unix.Sethostname([]byte(o.hostname)); err != nil {
			return fmt.Errorf("host name %s: %w", o.hostname, err)
		}
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if o.capabilities != nil {
		if err := confine(*o.capabilities); err != nil {
			return err
		}
	}
	if err := unix.Exec(program, argv, os.Environ()); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

func parse(args []string) (o options, rest []string) {
	for len(args) > 1 {
		switch args[0] {
		case "--bind":
			o.binds = append(o.binds, args[1])
		case "--scratch":
			o.scratch = args[1]
		case "--hostname":
			o.hostname = args[1]
		case "--capabilities":
			o.capabilities = &args[1]
		case "--read-only":
			o.readOnly = true
			args = args[1:]
			continue
		default:
			return o, args
		}
		args = args[2:]
	}
	return o, args
}

func mounts(o options) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	// Slave, not private: a namespace that is removed on the machine must not be kept alive by our copy of its mount.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts our own: %w", err)
	}
	for i, b := range o.binds {
		source, target, _ := strings.Cut(b, ":")
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) && o.scratch != "" {
			if err := makeTarget(target, filepath.Join(o.scratch, strconv.Itoa(i))); err != nil {
				return err
			}
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", source, target, err)
		}
	}
	if o.readOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make / read-only: %w", err)
		}
	}
	// /sys/class/net shows the network namespace of whoever mounted it.
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// makeTarget makes a directory to mount on, where the machine has none, without leaving it there: what it is made in is
// first covered by a layer that is kept elsewhere.
func makeTarget(target, scratch string) error {
	parent := filepath.Dir(target)
	for {
		if info, err := os.Stat(parent); err == nil && info.IsDir() {
			break
		}
		parent = filepath.Dir(parent)
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", parent, "overlay", 0, "lowerdir="+parent+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("cover %s: %w", parent, err)
	}
	return os.MkdirAll(target, 0o755)
}

var capabilities = map[string]uintptr{
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
}

// confine leaves the program no capabilities but these, as a container runtime does, and no way to get others.
func confine(names string) error {
	keep := map[uintptr]bool{}
	for name := range strings.SplitSeq(names, ",") {
		c, ok := capabilities[name]
		if !ok && name != "" {
			return fmt.Errorf("the lab does not know the capability %s", name)
		}
		keep[c] = ok
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		// A kernel that does not know it does not have it.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return nil
}
