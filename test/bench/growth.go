package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// growths are the ways in which growth.wasm is run, from one compiled artefact: under the engine alone, and under
// `slipway run` without and with a memory limit.
var growths = []string{"engine", "no_limit", "limit"}

// memoryGrowth measures what one memory.grow of one page costs, and what the budget adds to it: each round runs
// all three, and is compared with itself.
func memoryGrowth(ctx context.Context, p *plan, _ *client, r *results) {
	if len(p.growths) == 0 {
		return
	}
	slipway := &runtime{name: "slipway"}
	r.progress("memory growth", 0, p.warmup+p.growthRounds)
	for round := range p.warmup + p.growthRounds {
		nanoseconds := map[string]float64{}
		for _, way := range shuffled(growths) {
			if ctx.Err() != nil {
				return
			}
			value, err := printed(p.growths[way])
			if err != nil {
				r.failAs(slipway, "memory_growth_"+way, err)
				continue
			}
			nanoseconds[way] = value
		}
		if round >= p.warmup {
			r.addGrowths(slipway, nanoseconds)
		}
	}
}

// addGrowths takes one round's nanoseconds per growth.
func (r *results) addGrowths(rt *runtime, nanoseconds map[string]float64) {
	engine := nanoseconds["engine"]
	for _, way := range growths {
		value, ok := nanoseconds[way]
		if !ok {
			continue
		}
		r.add(rt, "memory_growth_"+way, "ns", value)
		if way != "engine" && engine > 0 {
			r.add(rt, "memory_growth_"+way+"_ratio", "× engine", value/engine)
		}
	}
}

// printed is the number that a command prints.
func printed(command string) (float64, error) {
	run := exec.Command("sh", "-c", "exec "+command)
	run.Stderr = os.Stderr
	out, err := run.Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", command, err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}
