package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// shuffled is the order of one round.
func shuffled[T any](all []T) []T {
	order := slices.Clone(all)
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// lives measures the phases of a pod's life, one pod at a time.
func lives(ctx context.Context, p *plan, c *client, r *results) {
	if p.n == 0 {
		return
	}
	for round := range p.warmup + p.n {
		r.progress("phases", round+1, p.warmup+p.n)
		for _, rt := range shuffled(p.runtimes) {
			if ctx.Err() != nil {
				return
			}
			times, err := life(ctx, c, rt)
			if round < p.warmup && err == nil {
				continue
			}
			r.fail(rt, err)
			for _, t := range times {
				r.add(rt, t.metric, "ms", milliseconds(t.duration))
			}
		}
	}
}

// life is one pod from nothing to nothing. Of one that fails, no time counts.
func life(ctx context.Context, c *client, rt *runtime) ([]timing, error) {
	begin := time.Now()
	pod, times, err := c.start(ctx, rt)
	if err == nil && rt.prints {
		err = c.output(ctx, pod)
		times = append(times, timing{"first_output", time.Since(begin)})
	}
	ending, removed := c.remove(ctx, pod)
	if err := errors.Join(err, removed); err != nil {
		return nil, err
	}
	return append(times, ending...), nil
}

// rates measures how many pods come up per second.
func rates(ctx context.Context, p *plan, c *client, r *results) {
	for round := range p.rounds {
		r.progress("pods per second", round+1, p.rounds)
		for _, parallel := range p.parallel {
			for _, rt := range shuffled(p.runtimes) {
				if ctx.Err() != nil {
					return
				}
				// Enough pods that the ramp's ends, where not all are in flight, weigh little.
				count := max(8, 2*parallel)
				begin := time.Now()
				pods, err := startMany(ctx, c, rt, count, parallel)
				rate := float64(count) / time.Since(begin).Seconds()
				metric := fmt.Sprintf("pods_per_second_%d", parallel)
				if err == nil {
					r.addRate(rt, metric, "pods/s", rate)
				}
				r.failAs(rt, metric, err)
				r.fail(rt, removeMany(ctx, c, pods))
			}
		}
	}
}

// memory reads the memory of idle pods, of one runtime at a time.
func memory(ctx context.Context, p *plan, c *client, r *results) {
	if p.idlePods == 0 {
		return
	}
	for i, rt := range shuffled(p.runtimes) {
		if ctx.Err() != nil {
			return
		}
		r.progress("memory", i+1, len(p.runtimes))
		pods, err := startMany(ctx, c, rt, p.idlePods, 4)
		if err == nil {
			time.Sleep(p.settle)
			err = weigh(ctx, c, rt, pods, r)
		}
		r.failAs(rt, "pss_per_pod", err)
		r.fail(rt, removeMany(ctx, c, pods))
	}
}

func weigh(ctx context.Context, c *client, rt *runtime, pods []*pod, r *results) error {
	table, err := processes("/proc")
	if err != nil {
		return err
	}
	for _, pod := range pods {
		holder, err := c.sandboxPid(ctx, pod)
		if err != nil {
			return err
		}
		sizes, err := table.weigh(pod.sandbox, pod.container, holder)
		if err != nil {
			return err
		}
		const mib = 1 << 20
		r.add(rt, "pss_per_pod", "MiB", float64(sizes.shim+sizes.holder+sizes.workload)/mib)
		r.add(rt, "pss_shim", "MiB", float64(sizes.shim)/mib)
		r.add(rt, "pss_holder", "MiB", float64(sizes.holder)/mib)
		r.add(rt, "pss_workload", "MiB", float64(sizes.workload)/mib)
		r.add(rt, "processes_per_pod", "", float64(sizes.processes))
	}
	return nil
}

// startMany starts pods with some in flight. All pods are returned, those that failed, too.
func startMany(ctx context.Context, c *client, rt *runtime, count, parallel int) ([]*pod, error) {
	pods, failures := make([]*pod, count), make([]error, count)
	each(count, parallel, func(i int) { pods[i], _, failures[i] = c.start(ctx, rt) })
	return pods, errors.Join(failures...)
}

func removeMany(ctx context.Context, c *client, pods []*pod) error {
	failures := make([]error, len(pods))
	each(len(pods), 8, func(i int) { _, failures[i] = c.remove(ctx, pods[i]) })
	return errors.Join(failures...)
}

// each calls f(0) to f(count-1) from a number of workers.
func each(count, workers int, f func(int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	all.Wait()
}

// guestStarts times commands from start to exit.
func guestStarts(ctx context.Context, p *plan, _ *client, r *results) {
	var measured []*runtime
	for _, rt := range p.runtimes {
		if p.guestStarts[rt.name] != "" {
			measured = append(measured, rt)
		}
	}
	for range p.n {
		for _, rt := range shuffled(measured) {
			if ctx.Err() != nil {
				return
			}
			command := exec.Command("sh", "-c", "exec "+p.guestStarts[rt.name])
			command.Stderr = os.Stderr
			begin := time.Now()
			if err := command.Run(); err != nil {
				r.failAs(rt, "guest_start", err)
				continue
			}
			r.add(rt, "guest_start", "ms", milliseconds(time.Since(begin)))
		}
	}
}
