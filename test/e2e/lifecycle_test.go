package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// Each kind of probe: what passes is ready, what fails is started again.
func TestProbes(t *testing.T) {
	s := space(t)
	server := func(name, probes string) {
		s.apply(lasting(name, "files", `command: [/http-server.wasm]`+"\n"+probes))
	}
	server("http", `
startupProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, failureThreshold: 60}
readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}`)
	server("exec", `
startupProbe: {exec: {command: [/envfiles.wasm, env]}, periodSeconds: 1, failureThreshold: 60}
readinessProbe: {exec: {command: [/envfiles.wasm, cat, /envfiles.wasm]}, periodSeconds: 1, timeoutSeconds: 10}
livenessProbe: {exec: {command: [/envfiles.wasm, ls, /]}, periodSeconds: 1, timeoutSeconds: 10}`)
	server("unready", `readinessProbe: {httpGet: {path: /none, port: 8080}, periodSeconds: 1}`)
	server("dead", `livenessProbe: {exec: {command: [/envfiles.wasm, cat, /none]}, periodSeconds: 1, failureThreshold: 1}`)
	server("deaf", `livenessProbe: {tcpSocket: {port: 1}, periodSeconds: 1, failureThreshold: 1}`)
	s.pod("http", ready)
	s.pod("exec", ready)
	s.pod("dead", restarted(1))
	s.pod("deaf", restarted(1))
	s.says("HTTP probe failed with statuscode: 404", "describe", "pod", "unready")
	s.says("Liveness probe failed: envfiles cat /none: No such file", "describe", "pod", "dead")
	if pod := s.pod("unready", phase(v1.PodRunning)); ready(pod) {
		s.Error("a pod whose probe fails is ready")
	}
	for _, name := range []string{"http", "exec"} {
		if pod := s.pod(name, ready); pod.Status.ContainerStatuses[0].RestartCount != 0 {
			s.Errorf("%s was started again", name)
		}
	}
}

func TestHooks(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 30
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: wasm
    image: IMAGE(files)
    imagePullPolicy: PULL
    args: [sleep]
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle:
      postStart: {exec: {command: [/envfiles.wasm, write, /v/started, "yes"]}}
      preStop: {exec: {command: [/envfiles.wasm, write, /v/stopping, "yes"]}}
  - name: linux
    image: BUSYBOX
    imagePullPolicy: PULL
    command: [sh, -c, "trap '' TERM; until [ -e /v/stopping ]; do sleep 0.1; done; cat /v/started; echo stopping seen"]
    volumeMounts: [{name: v, mountPath: /v}]
`)
	s.pod("p", ready)
	follow := exec.Command("kubectl", "-n", s.name, "logs", "-f", "p", "-c", "linux")
	log, err := follow.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		s.Fatal(err)
	}
	defer func() { _ = follow.Wait() }()
	s.kubectl("delete", "pod", "p", "--wait=false")
	text, _ := io.ReadAll(log)
	s.contains(string(text), "yes\nstopping seen\n")
	s.kubectl("wait", "--for=delete", "pod/p", promptly)
}

// A pod whose module is still being compiled, which takes as long as it takes, runs for Kubernetes: its exec probes do not count yet, and
// it can be deleted within its grace period.
func TestDeletionDuringACompile(t *testing.T) {
	s := alone(t)
	// What earlier tests have left to the compile queue is none of this one's, whose compiler is to stand still.
	drained := func() {
		node(t, "timeout", fmt.Sprint(int(patience.Seconds())), "sh", "-c", "while pgrep -x slipway-queue; do sleep 0.1; done")
	}
	drained()
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {slipway.dev/compile: full}}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 5
  containers:
  - name: c
    image: IMAGE(slow)
    imagePullPolicy: PULL
    livenessProbe: {exec: {command: [/slow.wat]}, periodSeconds: 1, failureThreshold: 1}
`)
	// The name as a pattern is not found in what looks for it.
	const compiler = "'[/]slipway-aot '"
	node(t, "timeout", fmt.Sprint(int(patience.Seconds())), "sh", "-c", "until pkill -STOP -f "+compiler+"; do sleep 0.05; done")
	s.pod("p", phase(v1.PodRunning))
	s.says("its module is still being compiled", "describe", "pod", "p")
	if pod := s.pod("p", phase(v1.PodRunning)); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		s.Error("it was started again for a probe that nothing could answer")
	}
	s.kubectl("delete", "pod", "p", promptly)
	// It goes on, for the next start.
	node(t, "sh", "-c", "pkill -CONT -f "+compiler)
	drained()
}

func TestLogs(t *testing.T) {
	s := space(t)
	s.apply(lasting("p", "hello", `args: [exit, "1"]`))
	s.pod("p", restarted(1))
	// Its next restart may take the log away at this moment.
	previous := func(args ...string) string {
		return s.logs("exit 1\n", append([]string{"p", "--previous"}, args...)...)
	}
	if log := previous(); log != "Hello from Slipway\narguments: exit 1\n" {
		s.Errorf("previous: %q", log)
	}
	stamped := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z Hello from Slipway\n`)
	if log := previous("--timestamps"); !stamped.MatchString(log) {
		s.Errorf("timestamps: %q", log)
	}
	if log := previous("--tail=1"); log != "arguments: exit 1\n" {
		s.Errorf("tail: %q", log)
	}
	s.apply(one("follow", "envfiles", `args: [lines, "20000"]`))
	s.pod("follow", func(pod *v1.Pod) bool { return pod.Status.Phase != v1.PodPending })
	if lines := strings.Count(s.kubectl("logs", "-f", "follow"), "\n"); lines != 20000 {
		s.Errorf("%d lines", lines)
	}
}

// Streams of a running program: exec, attach, run -i, with and without a terminal.
func TestStreams(t *testing.T) {
	s := space(t)
	s.apply(one("p", "files", `args: [sleep]`))
	s.apply(one("reader", "envfiles", "args: [stdin]\nstdin: true\nstdinOnce: true"))
	s.pod("p", ready)
	out, errors, err := s.kubectlWith("typed\n", "exec", "-i", "p", "--", "/envfiles.wasm", "stdin")
	if out != "typed\n" || err != nil {
		s.Errorf("exec -i: %q %q %v", out, errors, err)
	}
	out, errors, err = s.kubectlWith("", "exec", "p", "--", "/envfiles.wasm", "stderr", "told")
	if out != "" || errors != "told\n" || err != nil {
		s.Errorf("exec: %q %q %v", out, errors, err)
	}
	s.exits(9, "exec", "p", "--", "/hello.wasm", "exit", "9")
	s.pod("reader", ready)
	out, errors, err = s.kubectlWith("attached\n", "attach", "-i", "reader")
	if !strings.Contains(out, "attached\n") || err != nil {
		s.Errorf("attach: %q %q %v", out, errors, err)
	}
	s.ended("reader", "c")
	override := manifest(`{"spec":{"runtimeClassName":"CLASS"}}`)
	out, errors, err = s.kubectlWith("through run\n", "run", "interactive", "-i", "--rm", "--quiet", "--restart=Never", "--image="+prefix+"envfiles:latest",
		"--image-pull-policy="+pullPolicy, "--override-type=strategic", "--overrides="+override, "--", "stdin")
	if !strings.Contains(out, "through run\n") || err != nil {
		s.Errorf("run -i: %q %q %v", out, errors, err)
	}
	// script(1) gives kubectl a terminal.
	terminal := exec.Command("script", "-qec", "kubectl -n "+s.name+" exec -it p -- /hello.wasm exit 3", "/dev/null")
	// Nobody types, and nobody hangs up: kubectl may drop what was said when its input ends.
	if _, err := terminal.StdinPipe(); err != nil {
		s.Fatal(err)
	}
	said, err := terminal.CombinedOutput()
	if code := terminal.ProcessState.ExitCode(); code != 3 || !strings.Contains(string(said), "Hello from Slipway\r\n") {
		s.Errorf("exec -it: %d %v %q", code, err, said)
	}
}

func TestPortForward(t *testing.T) {
	s := space(t)
	s.apply(one("p", "http-server", ""))
	s.pod("p", ready)
	ctx, cancel := context.WithCancel(context.Background())
	forward := exec.CommandContext(ctx, "kubectl", "-n", s.name, "port-forward", "pod/p", ":8080")
	out, err := forward.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		s.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.Fatal(err)
	}
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(line)
	if port == nil {
		s.Fatalf("port-forward says %q", line)
	}
	answer, err := http.Get("http://127.0.0.1:" + port[1] + "/")
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || !strings.Contains(string(body), "Hello from Slipway") {
		s.Errorf("%q %v", body, err)
	}
}
