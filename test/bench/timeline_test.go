package main

import (
	"strings"
	"testing"
)

func TestTimelineIsReadFromContainerdsLog(t *testing.T) {
	log := `time="2026" level=info msg="something else"
level=debug msg="created s1: microseconds: spec=100 holder=300" runtime=x
level=debug msg="created c1: microseconds: spec=90 mounts=500" runtime=x
level=debug msg="started c1: microseconds: load=350" runtime=x
level=debug msg="created c2: microseconds: spec=110 mounts=700" runtime=x
`
	rt := &runtime{name: "slipway"}
	r := &results{runtimes: []*runtime{rt}}
	n, err := parseTimeline(strings.NewReader(log), rt, r)
	if n != 4 || err != nil {
		t.Fatalf("%d lines, %v", n, err)
	}
	r.finish()
	got := map[string]float64{}
	for _, x := range r.rows {
		got[x.Metric] = x.P95
	}
	for metric, want := range map[string]float64{
		"timeline_sandbox_holder": 300, "timeline_sandbox_all": 400, "timeline_created_mounts": 700,
		"timeline_created_all": 810, "timeline_started_load": 350,
	} {
		if got[metric] != want {
			t.Errorf("%s: got %v, want %v", metric, got[metric], want)
		}
	}
}

func TestABrokenStepIsAnError(t *testing.T) {
	rt := &runtime{name: "slipway"}
	_, err := parseTimeline(strings.NewReader(`msg="created c: microseconds: spec=x"`), rt, &results{})
	if err == nil || !strings.Contains(err.Error(), "spec=x") {
		t.Errorf("got %v", err)
	}
}
