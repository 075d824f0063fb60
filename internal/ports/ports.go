// Package ports says who holds a port of this machine: the programs that listen
// there. It opens and closes nothing.
//
//	taken, err := ports.Taken(doors, nil)
package ports

import (
	"bufio"
	"encoding/hex"
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
	var names []string
	file, state := "tcp", "0A" // TCP_LISTEN
	if at.Protocol == edge.UDP {
		file, state = "udp", "07" // TCP_CLOSE: connected to nobody
	}
	// By way of thread-self: /proc/net is the namespace of the main thread.
	for _, name := range []string{file, file + "6"} {
		for _, inode := range boundInodes("/proc/thread-self/net/"+name, state, at.Listen.Port) {
			names = append(names, o[inode]...)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return ": port " + strconv.Itoa(int(at.Listen.Port)) + " is held by " + strings.Join(slices.Compact(names), ", ")
}

// ReadOwners reads the descriptors of every process: tens of milliseconds on a
// busy machine.
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

// boundInodes returns the sockets that are bound to port and in a state, in a
// file of the form of /proc/net/tcp:
//
//	sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//	 0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 ...
func boundInodes(path, state string, port uint16) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	suffix := ":" + strings.ToUpper(hex.EncodeToString([]byte{byte(port >> 8), byte(port)}))
	var inodes []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 9 && f[3] == state && strings.HasSuffix(f[1], suffix) {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
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
