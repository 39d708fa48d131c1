package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI answers ListContainerStats, and nothing else.
type fakeCRI struct {
	cri.RuntimeServiceClient
	stats []*cri.ContainerStats
}

func (f *fakeCRI) ListContainerStats(context.Context, *cri.ListContainerStatsRequest, ...grpc.CallOption) (*cri.ListContainerStatsResponse, error) {
	return &cri.ListContainerStatsResponse{Stats: f.stats}, nil
}

func statsOf(id string) *cri.ContainerStats {
	return &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{Id: id},
		Cpu:        &cri.CpuUsage{UsageCoreNanoSeconds: &cri.UInt64Value{Value: 1}},
		Memory:     &cri.MemoryUsage{WorkingSetBytes: &cri.UInt64Value{Value: 1}},
	}
}

func TestAListOfStatisticsCountsOnlyWhenItIsWhole(t *testing.T) {
	without := statsOf("c2")
	without.Memory = nil
	for name, test := range map[string]struct {
		stats []*cri.ContainerStats
		want  string
	}{
		"whole":                      {[]*cri.ContainerStats{statsOf("c1"), statsOf("c2")}, ""},
		"a container is missing":     {[]*cri.ContainerStats{statsOf("c1")}, "statistics of 1 containers, want 2"},
		"a container has no figures": {[]*cri.ContainerStats{statsOf("c1"), without}, "statistics of c2"},
	} {
		c := &client{cri: &fakeCRI{stats: test.stats}}
		err := c.listStats(context.Background(), 2)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func TestTheShareOfACPUIsTheTimeUsedByTheTimePassed(t *testing.T) {
	if got := share(cpuTime{used: 5e9, at: 100e9}, cpuTime{used: 6e9, at: 110e9}); got != 10 {
		t.Errorf("got %v %%, want 10", got)
	}
}

func TestGrowthsAreComparedWithTheEngineOfTheSameRound(t *testing.T) {
	rt := &runtime{name: "slipway"}
	r := &results{}
	r.addGrowths(rt, map[string]float64{"engine": 1000, "no_limit": 1100, "limit": 1200})
	r.addGrowths(rt, map[string]float64{"engine": 2000, "no_limit": 2000, "limit": 2000})
	// Without the engine's there is nothing to compare with.
	r.addGrowths(rt, map[string]float64{"limit": 9000})
	got := map[string][]float64{}
	for _, x := range r.rows {
		got[x.Metric] = x.samples
	}
	if ratios := got["memory_growth_limit_ratio"]; len(ratios) != 2 || ratios[0] != 1.2 || ratios[1] != 1 {
		t.Errorf("ratios %v, want 1.2 and 1", ratios)
	}
	if all := got["memory_growth_limit"]; len(all) != 3 {
		t.Errorf("nanoseconds %v, want all three", all)
	}
}

func TestARuntimeThatWasNotMeasuredIsNotSilent(t *testing.T) {
	broken, unasked := &runtime{name: "runc"}, &runtime{name: "null"}
	r := &results{runtimes: []*runtime{broken, unasked}}
	r.failAs(broken, "exec", errors.New("no"))
	if silent := r.silent(); len(silent) != 1 || silent[0] != "runc" {
		t.Errorf("got %v, want runc", silent)
	}
}

func TestOnlyTakesPartsOfTheRunByName(t *testing.T) {
	if p, err := parse([]string{"-endpoint", "unix:///x", "-only", "tasks,growth"}); err != nil || len(p.only) != 2 {
		t.Errorf("got %v, %v", p, err)
	}
	if _, err := parse([]string{"-endpoint", "unix:///x", "-only", "tasks,exec"}); err == nil || !strings.Contains(err.Error(), `no part "exec"`) {
		t.Errorf("got %v", err)
	}
}
