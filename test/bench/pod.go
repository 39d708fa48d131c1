package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client makes and removes pods over one CRI connection.
type client struct {
	cri          cri.RuntimeServiceClient
	logs         string
	run          string
	hostNetwork  bool
	cgroupParent string
	timeout      time.Duration
	count        atomic.Int64
}

// pod is one sandbox with one container. Either id is empty as long as it does not exist.
type pod struct {
	sandbox, container string
	log                string
}

// failure is a request that did not succeed, charged to the metric it belongs to.
type failure struct {
	metric string
	err    error
}

func (f *failure) Error() string { return f.metric + ": " + f.err.Error() }

// start brings a pod to Running. Also after a failure the pod has to be removed.
func (c *client) start(ctx context.Context, r *runtime) (*pod, []timing, error) {
	name := fmt.Sprintf("%s-%s-%d", r.name, c.run, c.count.Add(1))
	namespaces := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	hostname := "pod"
	if c.hostNetwork {
		// Such a pod has the node's name, too: crun refuses another one.
		namespaces.Network, hostname = cri.NamespaceMode_NODE, ""
	}
	p := &pod{log: filepath.Join(c.logs, name, "app.log")}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     hostname,
		LogDirectory: filepath.Dir(p.log),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    c.cgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app"},
		Image:    &cri.ImageSpec{Image: r.image},
		Command:  r.command,
		Args:     r.args,
		LogPath:  filepath.Base(p.log),
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: namespaces}},
	}
	if r.cpuQuota > 0 {
		container.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: r.cpuQuota}
	}
	watch := newWatch()
	err := c.request(ctx, "run_sandbox", func(ctx context.Context) error {
		answer, err := c.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: r.handler})
		p.sandbox = answer.GetPodSandboxId()
		return err
	})
	if err != nil {
		return p, nil, err
	}
	sandboxed := watch.lap("run_sandbox")
	err = c.request(ctx, "create", func(ctx context.Context) error {
		answer, err := c.cri.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, Config: container, SandboxConfig: sandbox})
		p.container = answer.GetContainerId()
		return err
	})
	if err != nil {
		return p, nil, err
	}
	watch.lap("create")
	err = c.request(ctx, "start", func(ctx context.Context) error {
		_, err := c.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
		return err
	})
	if err != nil {
		return p, nil, err
	}
	watch.since("create_start", sandboxed, watch.lap("start"))
	if err := c.request(ctx, "pod_running", func(ctx context.Context) error { return c.running(ctx, p) }); err != nil {
		return p, nil, err
	}
	watch.since("pod_running", watch.begin, time.Now())
	return p, watch.times, nil
}

// running waits until the container is seen Running; it is an error if it has ended.
func (c *client) running(ctx context.Context, p *pod) error {
	for {
		answer, err := c.cri.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		switch s := answer.Status; s.State {
		case cri.ContainerState_CONTAINER_RUNNING:
			return nil
		case cri.ContainerState_CONTAINER_EXITED:
			return fmt.Errorf("the container ended with %d, %s %s", s.ExitCode, s.Reason, s.Message)
		}
		// CRI has no call that waits; in practice the first answer is the last.
		time.Sleep(time.Millisecond)
	}
}

// output waits for the first byte of the container's log. The log's size is all that is read of it:
// a container may write without end.
func (c *client) output(ctx context.Context, p *pod) error {
	return c.request(ctx, "first_output", func(ctx context.Context) error {
		for ctx.Err() == nil {
			if info, err := os.Stat(p.log); err == nil && info.Size() > 0 {
				return nil
			}
			time.Sleep(500 * time.Microsecond)
		}
		return ctx.Err()
	})
}

// remove stops and removes the pod. StopPodSandbox ends its container without grace.
func (c *client) remove(ctx context.Context, p *pod) ([]timing, error) {
	if p.sandbox == "" {
		return nil, nil
	}
	watch := newWatch()
	err := c.request(ctx, "stop", func(ctx context.Context) error {
		_, err := c.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox})
		return err
	})
	if err != nil {
		return nil, err
	}
	watch.lap("stop")
	err = c.request(ctx, "remove", func(ctx context.Context) error {
		_, err := c.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
		return err
	})
	if err != nil {
		return nil, err
	}
	watch.since("stop_remove", watch.begin, watch.lap("remove"))
	return watch.times, os.RemoveAll(filepath.Dir(p.log))
}

// request bounds one step's time. An interrupt does not cut it short: a pod must be whole to be removed.
func (c *client) request(ctx context.Context, metric string, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	if err := step(ctx); err != nil {
		return &failure{metric, err}
	}
	return nil
}

// sandboxPid asks containerd for the process that holds the pod's namespaces.
func (c *client) sandboxPid(ctx context.Context, p *pod) (int, error) {
	answer, err := c.cri.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox, Verbose: true})
	if err != nil {
		return 0, err
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil {
		return 0, fmt.Errorf("PodSandboxStatus: info: %w", err)
	}
	return info.Pid, nil
}

// timing is how long something took.
type timing struct {
	metric   string
	duration time.Duration
}

// watch takes the times of consecutive steps.
type watch struct {
	begin, last time.Time
	times       []timing
}

func newWatch() *watch {
	now := time.Now()
	return &watch{begin: now, last: now}
}

// lap ends a step, and returns when.
func (w *watch) lap(metric string) time.Time {
	now := time.Now()
	w.since(metric, w.last, now)
	w.last = now
	return now
}

func (w *watch) since(metric string, from, to time.Time) {
	w.times = append(w.times, timing{metric, to.Sub(from)})
}
