package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// The limit is the engine's budget: a program that needs more ends as one that the kernel kills, with both numbers.
func TestOOMKilled(t *testing.T) {
	s := space(t)
	s.apply(one("p", "hello", "args: [alloc, \"64\"]\nresources: {limits: {memory: 32Mi}}"))
	end := s.ended("p", "c")
	if end.Reason != "OOMKilled" || end.ExitCode != 137 {
		s.Errorf("%s, %d", end.Reason, end.ExitCode)
	}
	s.contains(end.Message, "its limit is 33554432 bytes")
	s.contains(s.kubectl("describe", "pod", "p"), "OOMKilled", end.Message)
}

// Memory and CPU of a running program, up and down, without a restart.
func TestResizeInPlace(t *testing.T) {
	s := space(t)
	s.apply(one("p", "files", `args: [sleep]
resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 100m, memory: 16Mi}}`))
	s.pod("p", ready)
	resize := func(cpu, memory string) {
		limits := fmt.Sprintf(`{"cpu":%q,"memory":%q}`, cpu, memory)
		s.kubectl("patch", "pod", "p", "--subresource", "resize", "--type", "strategic", "-p",
			fmt.Sprintf(`{"spec":{"containers":[{"name":"c","resources":{"limits":%s}}]}}`, limits))
		s.pod("p", func(pod *v1.Pod) bool {
			status := pod.Status.ContainerStatuses[0]
			if status.RestartCount != 0 {
				s.Fatal("the container was started again")
			}
			return status.Resources != nil && status.Resources.Limits.Memory().String() == memory && status.Resources.Limits.Cpu().String() == cpu
		})
	}
	// Through exec, whose guest has the container's budget.
	got := func() string {
		out, _, _ := s.kubectlWith("", "exec", "p", "--", "/hello.wasm", "alloc", "24")
		return out
	}
	if out := got(); strings.Contains(out, "allocated 24 of 24 MiB") {
		s.Errorf("24 MiB within 16: %q", out)
	}
	resize("200m", "64Mi")
	s.contains(got(), "allocated 24 of 24 MiB")
	resize("100m", "32Mi")
	s.contains(got(), "allocated 24 of 24 MiB")
}

// The kubelet's figures of a pod: what metrics-server and kubectl top read.
func TestStatistics(t *testing.T) {
	s := space(t)
	// Requests that a node of one processor has left beside its control plane.
	s.apply(one("spin", "hello", "args: [spin]\nresources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}"))
	pod := s.pod("spin", ready)
	// A fifth of a processor, which the quota lets through: the rest of the machine may leave it less.
	figures := statistics(s, pod, func(c containerFigures) bool { return c.CPU.UsageNanoCores > 20e6 && c.Memory.WorkingSetBytes > 0 })
	if cpu := figures.container(pod).CPU.UsageNanoCores; cpu > 260e6 {
		s.Errorf("%d nanocores with a limit of 200m", cpu)
	}
}

type containerFigures struct {
	CPU    struct{ UsageNanoCores uint64 }
	Memory struct{ WorkingSetBytes uint64 }
}

// nodeFigures are some of those that a kubelet has of its node and pods.
type nodeFigures struct {
	Node struct {
		Memory struct{ AvailableBytes uint64 }
	}
	Pods []struct {
		PodRef     struct{ Name, Namespace string }
		Containers []containerFigures
	}
}

// container has the figures of a pod's first container, or none.
func (f nodeFigures) container(pod *v1.Pod) containerFigures {
	for _, p := range f.Pods {
		if p.PodRef.Name == pod.Name && p.PodRef.Namespace == pod.Namespace && len(p.Containers) > 0 {
			return p.Containers[0]
		}
	}
	return containerFigures{}
}

// statistics waits until the kubelet has such figures of a pod, which it makes every ten seconds or so.
func statistics(s *Space, pod *v1.Pod, wanted func(containerFigures) bool) (figures nodeFigures) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for {
		raw, errors, err := s.kubectlWith("", "get", "--raw", "/api/v1/nodes/"+pod.Spec.NodeName+"/proxy/stats/summary")
		if err == nil {
			figures = nodeFigures{}
			if err := json.Unmarshal([]byte(raw), &figures); err != nil {
				s.Fatal(err)
			}
			if wanted(figures.container(pod)) {
				return figures
			}
		}
		if time.Now().After(deadline) {
			s.Fatalf("the kubelet has no such figures of the pod: %v\n%s%s", err, raw, errors)
		}
		time.Sleep(time.Second)
	}
}

func TestOverheadAndClasses(t *testing.T) {
	s := space(t)
	s.apply(one("guaranteed", "hello", "resources: {limits: {cpu: 50m, memory: 32Mi}}"))
	s.apply(one("burstable", "hello", "resources: {requests: {memory: 16Mi}}"))
	s.apply(one("best-effort", "hello", ""))
	for name, class := range map[string]v1.PodQOSClass{"guaranteed": v1.PodQOSGuaranteed, "burstable": v1.PodQOSBurstable, "best-effort": v1.PodQOSBestEffort} {
		s.ended(name, "c")
		pod := s.pod(name, phase(v1.PodSucceeded))
		if pod.Status.QOSClass != class {
			s.Errorf("%s is %s", name, pod.Status.QOSClass)
		}
		// The scheduler and the pod's cgroup count it.
		if pod.Spec.Overhead.Memory().IsZero() {
			s.Errorf("%s has no overhead", name)
		}
	}
}

// A module is in a cgroup of its container, below the one that the kubelet has made for its pod in its class; the kernel holds it to
// its quota there; and nothing of it is left when the pod is.
func TestCgroups(t *testing.T) {
	node(t, "true")
	s := space(t)
	resources := map[string]string{
		"guaranteed": "limits: {cpu: 100m, memory: 32Mi}",
		"burstable":  "requests: {cpu: 10m}, limits: {cpu: 100m, memory: 32Mi}",
		"besteffort": "",
	}
	for class, fields := range resources {
		s.apply(one(class, "hello", "args: [spin]\nresources: {"+fields+"}"))
	}
	uids := map[string]string{}
	for class, fields := range resources {
		pod := s.pod(class, ready)
		// systemd's slices have an underscore for each hyphen.
		uids[class] = "pod" + strings.ReplaceAll(string(pod.UID), "-", "[-_]")
		id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
		directory := cgroup(t, strings.TrimSpace(node(t, "crictl", "inspect", "-o", "go-template", "--template", "{{.info.pid}}", id)))
		if !regexp.MustCompile(`kubepods.*` + uids[class] + `.*/[^/]*` + id).MatchString(directory) {
			t.Errorf("%s is in %s", class, directory)
		}
		for other := range resources {
			if other != "guaranteed" && strings.Contains(directory, other) != (other == class) {
				t.Errorf("%s is in %s", class, directory)
			}
		}
		if fields != "" {
			node(t, "timeout", fmt.Sprint(patience.Seconds()), "sh", "-c", `until grep -q "nr_throttled [1-9]" "$1/cpu.stat"; do sleep 0.1; done`, "-", directory)
		}
	}
	s.kubectl("delete", "pod", "--all", patiently)
	for _, uid := range uids {
		node(t, "timeout", fmt.Sprint(patience.Seconds()), "sh", "-c", `while find /sys/fs/cgroup -type d | grep "$1"; do sleep 0.1; done`, "-", uid)
	}
}

// cgroup is where a process of the node is held to its quota.
func cgroup(t *testing.T, pid string) string {
	t.Helper()
	hierarchies := regexp.MustCompile(`(?m)^(\d+):(.*?):(.*)$`).FindAllStringSubmatch(node(t, "cat", "/proc/"+pid+"/cgroup"), -1)
	for _, hierarchy := range hierarchies {
		if slices.Contains(strings.Split(hierarchy[2], ","), "cpu") {
			return "/sys/fs/cgroup/cpu" + hierarchy[3]
		}
	}
	// Version 2 alone.
	return "/sys/fs/cgroup" + hierarchies[0][3]
}

// What kubectl top and an autoscaler see: where the cluster has a metrics-server.
func TestAutoscaler(t *testing.T) {
	s := space(t)
	if out, _, err := s.kubectlWith("", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"); err != nil {
		t.Skipf("the cluster has no metrics-server: test/cluster/cluster metrics %s", out)
	}
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      runtimeClassName: CLASS
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: IMAGE(hello), imagePullPolicy: PULL, args: [spin], resources: {requests: {cpu: 20m, memory: 8Mi}, limits: {cpu: 100m, memory: 32Mi}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
`)
	s.replicas("deployments", "busy", 3)
	s.says("busy", "top", "pods")
}
