package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// A server beside modules for exec.
const serving = `command: [/http-server.wasm]
readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}`

// survivors is a server that must not be started again, and one that is called through a probe.
func survivors(s *Space) (check func()) {
	s.apply(lasting("p", "files", serving))
	s.pod("p", ready)
	return func() {
		s.Helper()
		pod := s.pod("p", ready)
		if pod.Status.ContainerStatuses[0].RestartCount != 0 {
			s.Error("the container was started again")
		}
		// A kubelet that has just begun does not know all of its pods.
		s.says("Hello from Slipway", "exec", "p", "--", "/hello.wasm")
		s.says("Hello from Slipway", "get", "--raw", "/api/v1/namespaces/"+s.name+"/pods/p:8080/proxy/")
	}
}

// nodeReady waits until the API server has heard of the node since now: by its status, which the kubelet may tell each five minutes
// only when nothing changes, or by its lease.
func nodeReady(s *Space, since time.Time) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for {
		out, _, err := s.kubectlWith("", "get", "node", "-o", `jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}`)
		leases, _, leased := s.kubectlWith("", "-n", "kube-node-lease", "get", "lease", "-o", "jsonpath={.items[*].spec.renewTime}")
		status, beat, _ := strings.Cut(out, " ")
		if err == nil && leased == nil && status == "True" {
			for _, told := range append(strings.Fields(leases), beat) {
				if at, err := time.Parse(time.RFC3339, told); err == nil && at.After(since) {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			s.Fatalf("the node is not ready: %s, leases of %s", out, leases)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestRestartOfContainerdAndKubelet(t *testing.T) {
	node(t, "true")
	s := alone(t)
	check := survivors(s)
	for _, unit := range []string{"containerd", "kubelet"} {
		node(t, "systemctl", "restart", unit)
		nodeReady(s, time.Now())
		check()
	}
	// What ended meanwhile is known, too.
	s.apply(one("meanwhile", "hello", `args: [exit, "4"]`))
	if end := s.ended("meanwhile", "c"); end.ExitCode != 4 {
		s.Errorf("ended with %d", end.ExitCode)
	}
}

// containerd's successor takes over the pods of the older one, Wasm or not, as when a node's package is upgraded.
func TestUpgradeOfContainerd(t *testing.T) {
	successor := os.Getenv("E2E_CONTAINERD")
	if successor == "" {
		t.Skip("E2E_CONTAINERD names no directory on the node with a later containerd than the one that runs")
	}
	s := alone(t)
	check := survivors(s)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 5
  containers:
  - {name: c, image: IMAGE(files), imagePullPolicy: PULL, args: [sleep]}
  - {name: linux, image: BUSYBOX, imagePullPolicy: PULL, command: [sleep, "100000"]}
`)
	mixed := s.pod("mixed", ready)
	processes := func() (pids string) {
		for _, id := range strings.Fields(node(t, "crictl", "ps", "-q", "--label", "io.kubernetes.pod.namespace="+s.name)) {
			pids += node(t, "crictl", "inspect", "-o", "go-template", "--template", "{{.status.metadata.name}} {{.info.pid}}", id)
		}
		return pids
	}
	running := processes()
	unit := strings.TrimSpace(node(t, "systemctl", "show", "-P", "FragmentPath", "containerd"))
	program := node(t, "readlink", "/proc/"+mainPID(t, "containerd")+"/exe")
	node(t, "systemctl", "stop", "containerd")
	node(t, "sed", "-i", "s#"+filepath.Dir(program)+"#"+successor+"#g", unit)
	node(t, "systemctl", "daemon-reload")
	node(t, "systemctl", "start", "containerd")
	version := strings.Fields(node(t, successor+"/containerd", "--version"))[2]
	s.says(strings.TrimPrefix(version, "v"), "get", "node", mixed.Spec.NodeName, "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
	check()
	if after := processes(); after != running {
		s.Errorf("processes were\n%s, then\n%s", running, after)
	}
	s.contains(s.kubectl("exec", "mixed", "-c", "c", "--", "/hello.wasm", "still"), "arguments: still")
	s.contains(s.kubectl("exec", "mixed", "-c", "linux", "--", "echo", "still"), "still")
	s.contains(s.kubectl("logs", "mixed", "-c", "c"), "Hello from Slipway")
	for _, status := range s.pod("mixed", ready).Status.ContainerStatuses {
		if status.RestartCount != 0 {
			s.Errorf("%s was started again", status.Name)
		}
	}
	s.apply(one("later", "hello", ""))
	if end := s.ended("later", "c"); end.ExitCode != 0 {
		s.Errorf("a pod of the new containerd ended with %d", end.ExitCode)
	}
	s.kubectl("delete", "pod", "--all", promptly)
	if left := node(t, "crictl", "pods", "-q", "--state", "ready", "--namespace", s.name); left != "" {
		s.Errorf("sandboxes are left: %s", left)
	}
}

// kubelet has the kubelet's configuration changed until the test has ended.
func kubelet(s *Space, changes map[string]any) {
	s.Helper()
	var file string
	for argument := range strings.SplitSeq(node(s.T, "cat", "/proc/"+mainPID(s.T, "kubelet")+"/cmdline"), "\x00") {
		if name, found := strings.CutPrefix(argument, "--config="); found {
			file = name
		}
	}
	before := node(s.T, "cat", file)
	settings := map[string]any{}
	if err := yaml.Unmarshal([]byte(before), &settings); err != nil {
		s.Fatalf("%s: %v", file, err)
	}
	maps.Copy(settings, changes)
	after, err := json.Marshal(settings)
	if err != nil {
		s.Fatal(err)
	}
	restart := func(text string) {
		node(s.T, "sh", "-c", `printf %s "$2" >"$1"`, "-", file, text)
		since := time.Now()
		node(s.T, "systemctl", "restart", "kubelet")
		nodeReady(s, since)
	}
	s.Cleanup(func() { restart(before) })
	restart(string(after))
}

// A node without memory evicts who takes more than was asked for, and not the neighbour who does not.
func TestEvictionForMemory(t *testing.T) {
	node(t, "true")
	s := alone(t)
	// The first to go, whatever the kubelet has measured by then: the cluster's own pods take more than they ask for, too.
	s.apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: " + s.name + "}, value: -1}")
	s.apply(lasting("modest", "files", serving+"\nresources: {requests: {memory: 64Mi}}"))
	modest := s.pod("modest", ready)
	measured := func(c containerFigures) bool { return c.Memory.WorkingSetBytes > 0 }
	available := statistics(s, modest, measured).Node.Memory.AvailableBytes
	// Half of what the other will take.
	kubelet(s, map[string]any{
		"evictionHard":                     map[string]string{"memory.available": fmt.Sprint(available - 256<<20)},
		"evictionPressureTransitionPeriod": "1s",
	})
	statistics(s, modest, measured)
	s.apply(one("greedy", "hoard", "resources: {requests: {memory: 1Mi}}", "priorityClassName: "+s.name))
	greedy := s.pod("greedy", phase(v1.PodFailed))
	if greedy.Status.Reason != "Evicted" {
		s.Errorf("%s: %s", greedy.Status.Reason, greedy.Status.Message)
	}
	s.contains(greedy.Status.Message, "low on resource: memory", "Container c was using")
	s.says("Evicted", "get", "events", "--field-selector", "involvedObject.name=greedy")
	s.says("False", "get", "node", modest.Spec.NodeName, "-o", `jsonpath={.status.conditions[?(@.type=="MemoryPressure")].status}`)
	if pod := s.pod("modest", ready); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		s.Error("the neighbour was started again")
	}
	s.contains(s.kubectl("exec", "modest", "--", "/hello.wasm", "still"), "arguments: still")
}

// Without room for compiled modules, or for the state of pods, a pod's event says where, and the pod starts once there is room.
func TestFullDisk(t *testing.T) {
	node(t, "true")
	s := alone(t)
	full := []struct{ pod, directory string }{
		{"state", "/run/containerd/io.containerd.runtime.v2.task/k8s.io"},
		{"cache", "/var/lib/slipway/cache"},
	}
	for _, disk := range full {
		node(t, "mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", disk.directory)
		t.Cleanup(func() {
			// What began on it has to end on it.
			s.kubectl("delete", "pod", "--all", promptly)
			node(t, "umount", "-l", disk.directory)
		})
		node(t, "sh", "-c", `dd if=/dev/zero of="$1/filler" bs=4k 2>/dev/null || true`, "-", disk.directory)
		s.apply(lasting(disk.pod, "files", serving))
		s.contains(s.says("o space left on device", "describe", "pod", disk.pod), disk.directory)
		node(t, "rm", disk.directory+"/filler")
	}
	for _, disk := range full {
		s.pod(disk.pod, ready)
	}
}

// A shim that dies takes its pod along, and the kubelet makes it anew.
func TestShimThatDies(t *testing.T) {
	node(t, "true")
	s := space(t)
	s.apply(lasting("p", "hello", `args: [sleep]`))
	pod := s.pod("p", ready)
	sandbox := strings.TrimSpace(node(t, "crictl", "pods", "-q", "--no-trunc", "--label", "io.kubernetes.pod.uid="+string(pod.UID)))
	node(t, "pkill", "-KILL", "-f", "containerd-shim-slipway-v1 .*-id "+sandbox)
	s.pod("p", func(pod *v1.Pod) bool { return restarted(1)(pod) && ready(pod) })
}

// Everything that is drained comes back.
func TestDrain(t *testing.T) {
	s := alone(t)
	s.apply(web)
	s.kubectl("rollout", "status", "deployment/web", patiently)
	name := s.kubectl("get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].spec.nodeName}")
	t.Cleanup(func() { s.kubectl("uncordon", name) })
	s.kubectl("drain", name, "--pod-selector=app=web", promptly)
	s.kubectl("uncordon", name)
	s.kubectl("rollout", "status", "deployment/web", patiently)
}

// As many pods as people try first, on one node.
func TestHundredPods(t *testing.T) {
	s := alone(t)
	s.apply(strings.Replace(web, "replicas: 2", "replicas: 100", 1))
	s.replicas("deployments", "web", 100)
	s.kubectl("delete", "deployment", "web")
	s.kubectl("wait", "--for=delete", "pod", "-l", "app=web", patiently)
}

// The image of a running program may go, and come back: its pod goes on, and the compiled module is still there.
func TestImageThatIsRemoved(t *testing.T) {
	node(t, "true")
	s := space(t)
	s.apply(lasting("p", "artefact", `args: [sleep]`))
	s.pod("p", ready)
	image, file := prefix+"artefact:latest", "/root/"+s.name+".tar"
	node(t, "ctr", "-n", "k8s.io", "images", "export", file, image)
	back := func() { node(t, "ctr", "-n", "k8s.io", "images", "import", file) }
	t.Cleanup(func() { back(); node(t, "rm", file) })
	node(t, "crictl", "rmi", image)
	s.apply(one("later", "artefact", ""))
	s.says("ErrImageNeverPull", "describe", "pod", "later")
	back()
	if end := s.ended("later", "c"); end.ExitCode != 0 {
		s.Errorf("ended with %d", end.ExitCode)
	}
	if pod := s.pod("p", ready); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		s.Error("the container was started again")
	}
	s.contains(s.kubectl("exec", "p", "--", "hello", "still"), "arguments: still")
}

// Who writes more than the volume may hold has to go, Wasm or not.
func TestEvictionForStorage(t *testing.T) {
	s := space(t)
	// It writes before all else: the kubelet looks at a new pod's volumes within a minute, and then after one or two more.
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {sizeLimit: 16Ki}}]
  initContainers:
  - {name: write, image: IMAGE(files), imagePullPolicy: PULL, command: [/envfiles.wasm, write, /v/file, ` + strings.Repeat("more", 8<<10) + `],
     volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: c, image: IMAGE(files), imagePullPolicy: PULL, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
`)
	pod := s.podWithin(2*patience, "p", phase(v1.PodFailed))
	if pod.Status.Reason != "Evicted" {
		s.Errorf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
	s.contains(pod.Status.Message, `exceeds the limit "16Ki"`)
}
