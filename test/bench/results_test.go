package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	sorted := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for share, want := range map[float64]float64{0.5: 5, 0.95: 10, 0.1: 1, 1: 10} {
		if got := percentile(sorted, share); got != want {
			t.Errorf("percentile %v: got %v, want %v", share, got, want)
		}
	}
}

func TestTheP95OfARateIsTheSlowSide(t *testing.T) {
	rt := &runtime{name: "runc"}
	r := &results{runtimes: []*runtime{rt}}
	for _, rate := range []float64{10, 30, 20} {
		r.addRate(rt, "pods_per_second_4", "pods/s", rate)
	}
	r.finish()
	if x := r.rows[0]; x.P50 != 20 || x.P95 != 10 {
		t.Errorf("got p50 %v, p95 %v, want 20, 10", x.P50, x.P95)
	}
}

func TestEachFailureIsCountedUnderItsMetricAndShown(t *testing.T) {
	rt := &runtime{name: "runc"}
	r := &results{runtimes: []*runtime{rt}, suffix: "_300_mounts"}
	broken := errors.Join(&failure{"start", errors.New("no such file")}, errors.Join(nil, &failure{"stop", errors.New("late")}))
	r.fail(rt, broken)
	r.fail(rt, broken)
	r.fail(rt, nil)
	path := filepath.Join(t.TempDir(), "results.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[0].Metric != "start_300_mounts" || rows[0].Failures != 2 || rows[1].Failures != 2 {
		t.Errorf("got %+v", rows)
	}
	var table bytes.Buffer
	r.print(&table)
	if !strings.Contains(table.String(), "FAILED runc start_300_mounts: 2 times, 0 succeeded; first: start: no such file") {
		t.Errorf("the table hides the failure:\n%s", table.String())
	}
}
