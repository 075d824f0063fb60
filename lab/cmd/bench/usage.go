package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// family returns a process and all that it has started, and so on.
func family(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is a good one
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, family(child)...)
			}
		}
	}
	return pids
}

// cpuTime is what processes have used so far, to the nanosecond, threads that have ended included.
func cpuTime(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		clock := int32(^pid<<3 | 2) // clock_getcpuclockid(3): CPUCLOCK_SCHED of the process
		if err := unix.ClockGettime(clock, &ts); err == nil {
			sum += time.Duration(ts.Nano())
		}
	}
	return sum
}

// memory returns the resident memory and the number of descriptors of processes.
func memory(pids []int) (kilobytes float64, fds int, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(text)) {
			var kb float64
			if _, err := fmt.Sscanf(line, "Rss: %f kB", &kb); err == nil {
				kilobytes += kb * 1.024
			}
		}
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, 0, err
		}
		fds += len(open)
	}
	return kilobytes, fds, nil
}

// machine is how the processors have spent their time, in ticks.
type machine struct{ all, idle, softirq float64 }

func machineTime() (machine, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return machine{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var m machine
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return machine{}, err
		}
		m.all += v
		switch i {
		case 3, 4:
			m.idle += v
		case 6:
			m.softirq += v
		}
	}
	return m, nil
}
