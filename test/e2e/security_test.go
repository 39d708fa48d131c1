package e2e

import (
	"strings"
	"testing"
)

// What Pod Security's strictest level demands.
const restricted = `securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 2000
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
`

func TestRestrictedPod(t *testing.T) {
	s := space(t, "pod-security.kubernetes.io/enforce=restricted")
	if err := s.try(one("refused", "hello", "")); err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
		s.Errorf("a pod without a security context: %v", err)
	}
	// A safe sysctl: containerd before 2.0 does not set it for all pods. The container beside sees the module's process.
	s.apply(one("server", "http-server", restricted+`
ports: [{containerPort: 80}]
env: [{name: PORT, value: "80"}]
readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}`,
		`shareProcessNamespace: true`,
		`securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}`) + `
  - name: beside
    image: BUSYBOX
    imagePullPolicy: PULL
    command: [sleep, "100000"]
    ` + strings.ReplaceAll(strings.TrimSpace(restricted), "\n", "\n    "))
	s.apply(one("writer", "envfiles", restricted+`args: [write, /file, x]`))
	s.pod("server", ready)
	s.contains(s.kubectl("exec", "server", "-c", "beside", "--", "sh", "-c",
		"grep -l slipway-guest /proc/[0-9]*/status | xargs grep Seccomp:"), "Seccomp:\t2")
	if end := s.ended("writer", "c"); end.ExitCode != 1 {
		s.Errorf("the writer ended with %d", end.ExitCode)
	}
	s.contains(s.kubectl("logs", "writer"), "ead-only file system")
}

// Files of a volume belong to the pod's group.
func TestFileGroup(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  runtimeClassName: CLASS
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 3000}
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: write, image: IMAGE(envfiles), imagePullPolicy: PULL, args: [write, /v/file, mine], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: c, image: BUSYBOX, imagePullPolicy: PULL, command: [stat, -c, "%u %g", /v/file], volumeMounts: [{name: v, mountPath: /v}]}
`)
	if end := s.ended("p", "c"); end.ExitCode != 0 {
		s.Fatalf("ended with %d", end.ExitCode)
	}
	if got := s.kubectl("logs", "p", "-c", "c"); got != "1000 3000\n" {
		s.Errorf("owner %q", got)
	}
}

func TestHostNetwork(t *testing.T) {
	s := space(t)
	s.apply(one("p", "http-server", `env: [{name: PORT, value: "18080"}]`, "hostNetwork: true"))
	pod := s.pod("p", ready)
	if pod.Status.PodIP != pod.Status.HostIP {
		s.Errorf("pod %s, host %s", pod.Status.PodIP, pod.Status.HostIP)
	}
}

// A sidecar sees the module's process.
func TestSharedProcesses(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 0
  shareProcessNamespace: true
  containers:
  - {name: wasm, image: IMAGE(hello), imagePullPolicy: PULL, args: [sleep]}
  - {name: linux, image: BUSYBOX, imagePullPolicy: PULL, command: [sleep, "100000"]}
`)
	s.pod("p", ready)
	s.contains(s.kubectl("exec", "p", "-c", "linux", "--", "ps"), "slipway", "sleep 100000")
}

// bad is a pod that cannot run, and what describe says of it.
func bad(s *Space, name, text, want string) {
	s.Helper()
	if err := s.try(text); err != nil {
		s.contains(err.Error(), want)
		return
	}
	s.says(want, "describe", "pod", name)
}

func TestDescribeTellsWhatIsWrong(t *testing.T) {
	s := space(t)
	bad(s, "func", one("func", "hello", `command: ["/hello.wasm#nothing"]`), `nothing`)
	bad(s, "missing", one("missing", "hello", `command: [/no.wasm]`), `entrypoint "/no.wasm": no such file in the image`)
	bad(s, "small", one("small", "hello", `resources: {limits: {memory: 64Ki}}`), "memory")
	bad(s, "annotation", strings.Replace(one("annotation", "hello", ""), "name: annotation", `name: annotation, annotations: {slipway.dev/cpu-time: soon}`, 1), "slipway.dev/cpu-time")
	bad(s, "privileged", one("privileged", "hello", `securityContext: {privileged: true}`), "privileged")
	bad(s, "absent", one("absent", "no-such-image", ""), "ErrImageNeverPull")
	bad(s, "class", strings.Replace(one("class", "hello", ""), "CLASS", "no-such-class", 1), `RuntimeClass "no-such-class" not found`)
	s.apply(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: ` + s.name + `}
handler: no-such-handler
`)
	bad(s, "handler", strings.Replace(one("handler", "hello", ""), "CLASS", s.name, 1), `no runtime for "no-such-handler" is configured`)
	bad(s, "arguments", one("arguments", "hello", `args: [alloc, many]`), "hello")
}

// Root of such a pod is nobody on its node.
func TestUserNamespace(t *testing.T) {
	s := space(t)
	pod := strings.Replace(one("p", "hello", "args: [sleep]"), "restartPolicy", "hostUsers: false\n  restartPolicy", 1)
	handler := s.kubectl("get", "runtimeclass", class, "-o", "jsonpath={.handler}")
	supported := s.kubectl("get", "nodes", "-o", `jsonpath={.items[*].status.runtimeHandlers[?(@.name=="`+handler+`")].features.userNamespaces}`)
	if !strings.Contains(supported, "true") {
		bad(s, "p", pod, "user namespaces")
		return
	}
	s.apply(pod)
	id := strings.TrimPrefix(s.pod("p", ready).Status.ContainerStatuses[0].ContainerID, "containerd://")
	pid := strings.TrimSpace(node(t, "crictl", "inspect", "-o", "go-template", "--template", "{{.info.pid}}", id))
	if ids := strings.Fields(node(t, "cat", "/proc/"+pid+"/uid_map")); len(ids) != 3 || ids[0] != "0" || ids[1] == "0" || ids[2] != "65536" {
		t.Errorf("the module's user ids inside, outside, their number: %v", ids)
	}
}

// What modules there are is told to those who look for a shell.
func TestNoShell(t *testing.T) {
	s := space(t)
	s.apply(one("p", "files", `args: [sleep]`))
	s.pod("p", ready)
	said := s.exits(1, "exec", "p", "--", "sh", "-c", "ls")
	s.contains(said, "sh", "no such file in the image")
	said = s.exits(1, "cp", "p:/envfiles.wasm", "/dev/null")
	s.contains(said, "tar")
}
