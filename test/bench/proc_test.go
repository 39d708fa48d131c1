package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeProc writes a /proc of processes that are given as "pid parent pss-in-kB cgroup command line".
func fakeProc(t *testing.T, lines ...string) *processTable {
	t.Helper()
	root := t.TempDir()
	for _, line := range lines {
		f := strings.SplitN(line, " ", 5)
		directory := filepath.Join(root, f[0])
		if err := os.Mkdir(directory, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"stat":         fmt.Sprintf("%s (a (b) c) S %s 0 0", f[0], f[1]),
			"cgroup":       "4:memory:" + f[3] + "\n",
			"cmdline":      strings.ReplaceAll(f[4], " ", "\x00"),
			"smaps_rollup": "00400000-7ff rollup\nRss: 9999 kB\nPss:        " + f[2] + " kB\nPss_Anon: 1 kB\n",
		} {
			if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	table, err := processes(root)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func check(t *testing.T, got, want sizes) {
	t.Helper()
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWeighSplitsAPodIntoShimHolderAndWorkload(t *testing.T) {
	table := fakeProc(t,
		"1 0 100 / init",
		"10 1 5 / shim -namespace k8s.io -id sandbox1",
		"11 10 2 /k8s.io/sandbox1 pause",
		"12 10 3 /k8s.io/container1 sleep 100000",
		"13 10 7 / helper without a name",
		"20 1 50 / shim -namespace k8s.io -id sandbox2",
		"21 20 50 /k8s.io/sandbox2 pause",
	)
	got, err := table.weigh("sandbox1", "container1", 11)
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, sizes{shim: 12 << 10, holder: 2 << 10, workload: 3 << 10, processes: 4})
}

func TestWeighTellsAShimInTheSandboxsCgroupFromItsForkedHolder(t *testing.T) {
	table := fakeProc(t,
		"10 1 5 /k8s.io/sandbox1 shim -id sandbox1 start",
		"11 10 2 /k8s.io/sandbox1 shim -id sandbox1 start",
		"12 10 3 /k8s.io/container1 guest",
	)
	got, err := table.weigh("sandbox1", "container1", 11)
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, sizes{shim: 5 << 10, holder: 2 << 10, workload: 3 << 10, processes: 3})
}

func TestWeighFailsOnAPodWhoseContainerHasNoProcess(t *testing.T) {
	table := fakeProc(t, "10 1 5 / shim -id sandbox1")
	if _, err := table.weigh("sandbox1", "container1", 11); err == nil {
		t.Error("a pod without workload was weighed")
	}
}
