// Package ports says who holds a port of this machine: the programs that listen
// there. It opens and closes nothing.
//
//	for door, why := range ports.Taken(doors) {
//		...
//	}
package ports

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// Owners are the programs that hold each socket, by inode.
type Owners map[string][]string

// Holders says who has the port already, as a phrase to follow "address
// already in use", or "" where that cannot be seen (a program of another user,
// in another container).
func (o Owners) Holders(at edge.Door) string {
	var inodes []string
	for _, s := range sockets(at.Protocol, func(port uint16) bool { return port == at.Listen.Port }) {
		inodes = append(inodes, s.inode)
	}
	return o.held(at.Listen.Port, inodes)
}

func (o Owners) held(port uint16, inodes []string) string {
	var names []string
	for _, inode := range inodes {
		names = append(names, o[inode]...)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return ": port " + strconv.Itoa(int(port)) + " is held by " + strings.Join(slices.Compact(names), ", ")
}

// ReadOwners reads the descriptors of every process.
func ReadOwners() Owners {
	o := Owners{}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		inodes := socketsOf(dir)
		if len(inodes) == 0 {
			continue
		}
		name := "this gatehouse"
		if pid := filepath.Base(dir); pid != strconv.Itoa(os.Getpid()) {
			comm, _ := os.ReadFile(dir + "/comm")
			name = fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), pid)
		}
		for _, inode := range inodes {
			o[inode] = append(o[inode], name)
		}
	}
	return o
}

// socketsOf returns the inodes of the sockets that the process of a /proc
// directory holds open.
func socketsOf(dir string) (inodes []string) {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		target, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes = append(inodes, strings.TrimSuffix(inode, "]"))
		}
	}
	return inodes
}
