package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// survivors is a server that must not be started again, and one that is called through a probe.
func survivors(s *Space) (check func()) {
	s.apply(strings.Replace(one("p", "files", `command: [/http-server.wasm]
readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}`), "Never", "Always", 1))
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

// A shim that dies takes its pod along, and the kubelet makes it anew.
func TestShimThatDies(t *testing.T) {
	node(t, "true")
	s := space(t)
	s.apply(strings.Replace(one("p", "hello", `args: [sleep]`), "Never", "Always", 1))
	pod := s.pod("p", ready)
	sandbox := strings.TrimSpace(node(t, "crictl", "pods", "-q", "--no-trunc", "--label", "io.kubernetes.pod.uid="+string(pod.UID)))
	node(t, "pkill", "-KILL", "-f", "containerd-shim-slipway-v1 .*-id "+sandbox)
	s.pod("p", func(pod *v1.Pod) bool { return restarted(1)(pod) && ready(pod) })
}

// Everything that is drained comes back.
func TestDrain(t *testing.T) {
	s := alone(t)
	s.apply(web)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	name := s.kubectl("get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].spec.nodeName}")
	t.Cleanup(func() { s.kubectl("uncordon", name) })
	s.kubectl("drain", name, "--pod-selector=app=web", "--timeout=60s")
	s.kubectl("uncordon", name)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
}

// As many pods as people try first, on one node.
func TestHundredPods(t *testing.T) {
	s := alone(t)
	s.apply(strings.NewReplacer("replicas: 2", "replicas: 100").Replace(web))
	until(s, "deployments", "web", func(o *unstructured.Unstructured) bool {
		ready, _, _ := unstructured.NestedInt64(o.Object, "status", "readyReplicas")
		return ready == 100
	})
	s.kubectl("delete", "deployment", "web")
	s.kubectl("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=120s")
}

// The image of a running program may go, and come back: its pod goes on, and the compiled module is still there.
func TestImageThatIsRemoved(t *testing.T) {
	node(t, "true")
	s := space(t)
	s.apply(strings.Replace(one("p", "artefact", `args: [sleep]`), "Never", "Always", 1))
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
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {sizeLimit: 1Ki}}]
  containers:
  - {name: c, image: IMAGE(files), imagePullPolicy: PULL, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
`)
	s.pod("p", ready)
	for i := range 4 {
		s.kubectl("exec", "p", "--", "/envfiles.wasm", "write", fmt.Sprintf("/v/%d", i), "more")
	}
	pod := s.pod("p", phase(v1.PodFailed))
	if pod.Status.Reason != "Evicted" {
		s.Errorf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
}
