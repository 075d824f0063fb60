// Package enter owns the step from the machine into a host of the lab: this process joins a network namespace, gets
// a view of the file system in which /sys and a few directories are the host's own, and becomes another program.
// It is ip-netns-exec(8) with bind mounts, and keeps the process id, so whoever started it can signal the program.
package enter

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/site"
)

// Main is `lab _enter NETNS [--bind SOURCE:TARGET]... [--hostname NAME] -- PROGRAM [ARGUMENT]...`; it returns only if it
// fails. Without a --bind the machine's file system stays as it is.
func Main(args []string) error {
	if len(args) == 0 {
		return errors.New("no namespace given")
	}
	netns, args := args[0], args[1:]
	var binds []string
	for len(args) > 1 && args[0] == "--bind" {
		binds, args = append(binds, args[1]), args[2:]
	}
	hostname := ""
	if len(args) > 1 && args[0] == "--hostname" {
		hostname, args = args[1], args[2:]
	}
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
	if len(binds) > 0 {
		if err := mounts(binds); err != nil {
			return err
		}
	}
	if hostname != "" {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("new UTS namespace: %w", err)
		}
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("host name %s: %w", hostname, err)
		}
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := unix.Exec(program, argv, os.Environ()); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

func mounts(binds []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	// Slave, not private: a namespace that is removed on the machine must not be kept alive by our copy of its mount.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts our own: %w", err)
	}
	for _, b := range binds {
		source, target, _ := strings.Cut(b, ":")
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", source, target, err)
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
