package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tasks measures requests about containers that run: one pod of each runtime is up all the while.
func tasks(ctx context.Context, p *plan, c *client, r *results) {
	requests := []struct {
		metric string
		// applies says that the runtime has it.
		applies func(*runtime) bool
		request func(ctx context.Context, rt *runtime, container string, round int) error
	}{
		{"exec", func(rt *runtime) bool { return rt.exec != nil }, func(ctx context.Context, rt *runtime, container string, _ int) error {
			answer, err := c.cri.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: rt.exec})
			if err == nil && answer.ExitCode != 0 {
				err = fmt.Errorf("%v ended with %d: %s", rt.exec, answer.ExitCode, answer.Stderr)
			}
			return err
		}},
		{"stats_1", func(rt *runtime) bool { return rt.stats }, func(ctx context.Context, _ *runtime, container string, _ int) error {
			answer, err := c.cri.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: container})
			if err != nil {
				return err
			}
			return complete(answer.Stats)
		}},
		{"update", func(rt *runtime) bool { return rt.update }, func(ctx context.Context, _ *runtime, container string, round int) error {
			// Other limits each time, as of a pod that is resized to and fro.
			factor := int64(1 + round%2)
			limits := &cri.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: factor * 50_000, CpuShares: factor * 512, MemoryLimitInBytes: factor * 64 << 20}
			_, err := c.cri.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: container, Linux: limits})
			return err
		}},
	}
	if p.n == 0 {
		return
	}
	up := c.oneOfEach(ctx, p.runtimes, r)
	defer func() { r.removeAll(ctx, c, up) }()
	for round := range p.warmup + p.n {
		r.progress("requests to a running container", round+1, p.warmup+p.n)
		for _, request := range requests {
			for _, rt := range shuffled(p.runtimes) {
				if ctx.Err() != nil {
					return
				}
				if up[rt] == nil || !request.applies(rt) {
					continue
				}
				begin := time.Now()
				err := c.request(ctx, request.metric, func(ctx context.Context) error {
					return request.request(ctx, rt, up[rt].container, round)
				})
				took := time.Since(begin)
				switch {
				case err != nil:
					r.fail(rt, err)
				case round >= p.warmup:
					r.add(rt, request.metric, "ms", milliseconds(took))
				}
			}
		}
	}
}

// oneOfEach starts a pod of each runtime. One that fails is counted and left out.
func (c *client) oneOfEach(ctx context.Context, runtimes []*runtime, r *results) map[*runtime]*pod {
	up := map[*runtime]*pod{}
	for _, rt := range runtimes {
		pod, _, err := c.start(ctx, rt)
		if err != nil {
			_, removed := c.remove(ctx, pod)
			r.fail(rt, errors.Join(err, removed))
			continue
		}
		up[rt] = pod
	}
	return up
}

func (r *results) removeAll(ctx context.Context, c *client, up map[*runtime]*pod) {
	for rt, pod := range up {
		_, err := c.remove(ctx, pod)
		r.fail(rt, err)
	}
}

// complete says what is missing in a container's statistics: containerd answers without the figures that a shim does not give.
func complete(s *cri.ContainerStats) error {
	if s.GetCpu().GetUsageCoreNanoSeconds() == nil || s.GetMemory().GetWorkingSetBytes() == nil {
		return fmt.Errorf("no CPU time or no memory in the statistics of %s", s.GetAttributes().GetId())
	}
	return nil
}

// statsOfMany measures the list of all containers' statistics, which a kubelet asks for every ten seconds, with the
// pods of one runtime at a time: containerd asks all containers one after the other.
func statsOfMany(ctx context.Context, p *plan, c *client, r *results) {
	if p.n == 0 || p.statsPods == 0 {
		return
	}
	metric := fmt.Sprintf("stats_%d_pods", p.statsPods)
	measured := slices.DeleteFunc(shuffled(p.runtimes), func(rt *runtime) bool { return !rt.stats })
	for i, rt := range measured {
		if ctx.Err() != nil {
			return
		}
		r.progress("statistics of many", i+1, len(measured))
		pods, err := startMany(ctx, c, rt, p.statsPods, 4)
		if err == nil {
			time.Sleep(p.settle)
			for round := range p.warmup + p.n {
				begin := time.Now()
				err := c.request(ctx, metric, func(ctx context.Context) error { return c.listStats(ctx, p.statsPods) })
				took := time.Since(begin)
				switch {
				case err != nil:
					r.fail(rt, err)
				case round >= p.warmup:
					r.add(rt, metric, "ms", milliseconds(took))
				}
			}
		}
		r.failAs(rt, metric, err)
		r.fail(rt, removeMany(ctx, c, pods))
	}
}

// listStats asks for the statistics of all containers, of which there must be so many.
func (c *client) listStats(ctx context.Context, want int) error {
	answer, err := c.cri.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	if err != nil {
		return err
	}
	if len(answer.Stats) != want {
		return fmt.Errorf("statistics of %d containers, want %d", len(answer.Stats), want)
	}
	for _, s := range answer.Stats {
		if err := complete(s); err != nil {
			return err
		}
	}
	return nil
}

// quotas measures the CPU time that a spinning program uses under a limit of 100m. The programs of all runtimes spin
// at the same time; on a machine with less than their sum to give, the figure would be the machine's.
func quotas(ctx context.Context, p *plan, c *client, r *results) {
	if p.cpuWindows == 0 {
		return
	}
	var spinning []*runtime
	for _, rt := range p.runtimes {
		if rt.spin != nil {
			// The same runtime by name, with another program.
			spinner := *rt
			rt.spin(&spinner)
			spinner.cpuQuota = 10_000
			spinning = append(spinning, &spinner)
		}
	}
	up := c.oneOfEach(ctx, spinning, r)
	defer func() { r.removeAll(ctx, c, up) }()
	for window := range p.cpuWindows {
		r.progress("CPU time under 100m", window+1, p.cpuWindows)
		before := c.cpuTimes(ctx, up, r)
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.cpuWindow):
		}
		for rt, after := range c.cpuTimes(ctx, up, r) {
			if first, ok := before[rt]; ok {
				r.add(rt, "cpu_100m", "% of a CPU", share(first, after))
			}
		}
	}
}

// cpuTime is what a container had used at a moment; both in nanoseconds.
type cpuTime struct{ used, at int64 }

func (c *client) cpuTimes(ctx context.Context, up map[*runtime]*pod, r *results) map[*runtime]cpuTime {
	times := map[*runtime]cpuTime{}
	for rt, pod := range up {
		err := c.request(ctx, "cpu_100m", func(ctx context.Context) error {
			answer, err := c.cri.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: pod.container})
			if err != nil {
				return err
			}
			if err := complete(answer.Stats); err != nil {
				return err
			}
			cpu := answer.Stats.Cpu
			times[rt] = cpuTime{int64(cpu.UsageCoreNanoSeconds.Value), cpu.Timestamp}
			return nil
		})
		r.fail(rt, err)
	}
	return times
}

// share is the CPU time used between two moments, in percent of one CPU.
func share(from, to cpuTime) float64 {
	return 100 * float64(to.used-from.used) / float64(to.at-from.at)
}
