package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is what /proc says of one process, read once.
type process struct {
	pid, parent int
	// commandLine and cgroups are searched for the ids of a pod.
	commandLine, cgroups string
}

// processTable is one look at all processes of a /proc.
type processTable struct {
	root string
	all  []process
}

// sizes are the memory of one pod's processes (proportional set sizes, bytes), and their number.
type sizes struct {
	shim, holder, workload int64
	processes              int
}

// processes reads the processes below root, which is /proc except in tests.
// One that ends meanwhile is left out: its pod is not idle, or not ours.
func processes(root string) (*processTable, error) {
	directories, err := filepath.Glob(filepath.Join(root, "[0-9]*"))
	if err != nil {
		return nil, err
	}
	table := &processTable{root: root}
	for _, directory := range directories {
		pid, err := strconv.Atoi(filepath.Base(directory))
		if err != nil {
			continue
		}
		commandLine, err1 := os.ReadFile(filepath.Join(directory, "cmdline"))
		cgroups, err2 := os.ReadFile(filepath.Join(directory, "cgroup"))
		stat, err3 := os.ReadFile(filepath.Join(directory, "stat"))
		// proc_pid_stat(5): the name, in the last parentheses, may hold anything; the parent is the second field after it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if err1 != nil || err2 != nil || err3 != nil || len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s/stat: parent: %w", directory, err)
		}
		table.all = append(table.all, process{pid, parent, string(commandLine), string(cgroups)})
	}
	return table, nil
}

// weigh finds all processes of a pod and adds up their memory.
//
// They are those whose command line names the sandbox (its shim: containerd says -id SANDBOX), those in a cgroup
// named after sandbox or container, and all their descendants. What runs in the container's cgroup is the
// workload; of the rest the sandbox's own process, or one that lives in the sandbox's cgroup and is no shim, is
// the holder; everything else counts as shim.
func (t *processTable) weigh(sandbox, container string, holder int) (sizes, error) {
	var sum sizes
	mine := map[int]bool{}
	for _, p := range t.all {
		if strings.Contains(p.commandLine, sandbox) || strings.Contains(p.cgroups, sandbox) || strings.Contains(p.cgroups, container) {
			mine[p.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range t.all {
			if mine[p.parent] && !mine[p.pid] {
				mine[p.pid], grown = true, true
			}
		}
	}
	for _, p := range t.all {
		if !mine[p.pid] {
			continue
		}
		pss, err := t.pss(p.pid)
		if err != nil {
			return sum, err
		}
		sum.processes++
		inSandbox := strings.Contains(p.cgroups, sandbox)
		switch {
		case strings.Contains(p.cgroups, container):
			sum.workload += pss
		case inSandbox && (p.pid == holder || !strings.Contains(p.commandLine, sandbox)):
			sum.holder += pss
		default:
			sum.shim += pss
		}
	}
	if sum.shim == 0 || sum.workload == 0 {
		return sum, fmt.Errorf("pod %s: found no shim, or no process of its container", sandbox)
	}
	return sum, nil
}

// pss is a process's proportional set size in bytes (proc_pid_smaps(5)).
func (t *processTable) pss(pid int) (int64, error) {
	file := filepath.Join(t.root, strconv.Itoa(pid), "smaps_rollup")
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no Pss line", file)
}
