package e2e

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// one is a pod of one Wasm container that ends, with fields of the container and of the pod.
func one(name, image, fields string, ofPod ...string) string {
	return single("Never", name, image, fields, ofPod)
}

// lasting is a pod whose one Wasm container is started again when it ends.
func lasting(name, image, fields string, ofPod ...string) string {
	return single("Always", name, image, fields, ofPod)
}

func single(restart, name, image, fields string, ofPod []string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  runtimeClassName: CLASS
  restartPolicy: %s
  terminationGracePeriodSeconds: 5
  %s
  containers:
  - name: c
    image: IMAGE(%s)
    imagePullPolicy: PULL
    %s
`, name, restart, strings.Join(ofPod, "\n  "), image, strings.ReplaceAll(strings.TrimSpace(fields), "\n", "\n    "))
}

// replicas waits until a Deployment or a ReplicaSet has as many pods, all of them ready.
func (s *Space) replicas(resource, name string, wanted int64) {
	s.Helper()
	until(s, resource, name, func(o *unstructured.Unstructured) bool {
		ready, _, _ := unstructured.NestedInt64(o.Object, "status", "readyReplicas")
		all, _, _ := unstructured.NestedInt64(o.Object, "status", "replicas")
		return ready == wanted && all == wanted
	})
}

func TestPod(t *testing.T) {
	s := space(t)
	s.apply(one("p", "hello", `args: [one, two]`))
	end := s.ended("p", "c")
	if end.ExitCode != 0 || end.Reason != "Completed" {
		s.Errorf("ended with %d, %s", end.ExitCode, end.Reason)
	}
	if log := s.kubectl("logs", "p"); log != "Hello from Slipway\narguments: one two\n" {
		s.Errorf("log %q", log)
	}
}

func TestExitCodes(t *testing.T) {
	s := space(t)
	s.apply(one("seven", "hello", `args: [exit, "7"]`))
	s.apply(one("trap", "hello", `args: [trap]`))
	if end := s.ended("seven", "c"); end.ExitCode != 7 || end.Reason != "Error" {
		s.Errorf("seven: %d, %s", end.ExitCode, end.Reason)
	}
	end := s.ended("trap", "c")
	if end.ExitCode != 134 || !strings.Contains(end.Message, "unreachable") {
		s.Errorf("trap: %d, %q", end.ExitCode, end.Message)
	}
}

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  revisionHistoryLimit: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: CLASS
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: IMAGE(http-server)
        imagePullPolicy: PULL
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        resources: {requests: {cpu: 1m, memory: 8Mi}, limits: {memory: 32Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`

// An ordinary container to call others from.
const caller = `
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: BUSYBOX, imagePullPolicy: PULL, command: [sleep, "100000"]}
`

// A rollout, a rollback, and from one to twenty to none.
func TestDeployment(t *testing.T) {
	s := space(t)
	s.apply(web)
	s.apply(caller)
	s.kubectl("rollout", "status", "deployment/web", patiently)
	s.pod("caller", ready)
	// By the Service's name, from an ordinary container.
	get := func(address string) string {
		return s.kubectl("exec", "caller", "--", "wget", "-q", "-O", "-", address)
	}
	s.contains(get("http://web/"), "Hello from Slipway")

	s.kubectl("set", "env", "deployment/web", "PORT=8081")
	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", patiently)
	s.contains(get("http://web/"), "Hello from Slipway")
	s.contains(s.kubectl("rollout", "history", "deployment/web"), "3")

	for _, n := range []int64{1, 20, 0} {
		s.kubectl("scale", "deployment/web", fmt.Sprintf("--replicas=%d", n))
		s.replicas("deployments", "web", n)
	}
	s.kubectl("wait", "--for=delete", "pod", "-l", "app=web", patiently)
}

// Thirty servers are replaced while four callers ask, each request on a connection of its own: none is lost, for they drain, and
// take requests for as long as Services may still name them.
func TestRollingUpdateUnderRequests(t *testing.T) {
	s := space(t)
	servers := strings.Replace(web, "replicas: 2", "replicas: 30", 1)
	servers = strings.Replace(servers, "metadata: {labels: {app: web}}", "metadata: {labels: {app: web}, annotations: {slipway.dev/stop: drain}}", 1)
	servers = strings.Replace(servers, "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 60", 1)
	servers = strings.Replace(servers, "        readinessProbe:", "        lifecycle: {preStop: {sleep: {seconds: 15}}}\n        readinessProbe:", 1)
	s.apply(servers)
	s.kubectl("rollout", "status", "deployment/web", patiently)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: BUSYBOX
    imagePullPolicy: PULL
    args:
    - |
      call() {
        n=0
        until [ -e /tmp/stop ] && [ $n -ge 1000 ]; do
          wget -q -O /dev/null "http://$WEB_SERVICE_HOST/" || echo "lost at $(date)"
          n=$((n + 1))
        done
        echo "asked $n"
      }
      call & call & call & call & wait
    command: [sh, -c]
`)
	s.pod("caller", ready)
	old := strings.Fields(s.kubectl("get", "pods", "-l", "app=web", "-o", "name"))
	s.kubectl("set", "env", "deployment/web", "VERSION=2")
	s.kubectl(append([]string{"wait", "--for=delete", patiently}, old...)...)
	s.kubectl("rollout", "status", "deployment/web", patiently)
	s.kubectl("exec", "caller", "--", "touch", "/tmp/stop")
	if end := s.ended("caller", "c"); end.ExitCode != 0 {
		s.Errorf("the caller ended with %d", end.ExitCode)
	}
	asked, lost := 0, 0
	log := s.kubectl("logs", "caller")
	for line := range strings.Lines(log) {
		var n int
		if _, err := fmt.Sscanf(line, "asked %d", &n); err == nil {
			asked += n
		} else {
			lost++
		}
	}
	t.Logf("%d requests", asked)
	if lost > 0 {
		s.Errorf("of %d requests none is to be lost:\n%s", asked, log)
	}
}

// What fails is tried again as often as the Job says, and its codes are seen.
func TestJob(t *testing.T) {
	s := space(t)
	job := `
apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec:
  backoffLimit: %d
  template:
    spec:
      runtimeClassName: CLASS
      restartPolicy: Never
      containers: [{name: c, image: IMAGE(hello), imagePullPolicy: PULL, args: [%s]}]
%s`
	s.apply(fmt.Sprintf(job, "good", 0, "done", ""))
	s.apply(fmt.Sprintf(job, "bad", 1, `exit, "3"`, ""))
	s.apply(fmt.Sprintf(job, "refused", 5, `exit, "42"`, `
  podFailurePolicy:
    rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]`))
	s.kubectl("wait", "--for=condition=Complete", "job/good", patiently)
	s.kubectl("wait", "--for=condition=Failed", "job/bad", "job/refused", patiently)
	reason := func(job string) string {
		return s.kubectl("get", "job", job, "-o", `jsonpath={.status.conditions[?(@.type=="Failed")].reason} {.status.failed}`)
	}
	if got := reason("bad"); got != "BackoffLimitExceeded 2" {
		s.Errorf("bad: %s", got)
	}
	if got := reason("refused"); got != "PodFailurePolicy 1" {
		s.Errorf("refused: %s", got)
	}
}

func TestCronJob(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: minutely}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          runtimeClassName: CLASS
          restartPolicy: OnFailure
          containers: [{name: c, image: IMAGE(hello), imagePullPolicy: PULL, args: [tick]}]
`)
	s.kubectl("create", "job", "--from=cronjob/minutely", "now")
	s.kubectl("wait", "--for=condition=Complete", "job/now", patiently)
	s.contains(s.kubectl("logs", "job/now"), "arguments: tick")
	until(s, "cronjobs", "minutely", func(o *unstructured.Unstructured) bool {
		_, done, _ := unstructured.NestedString(o.Object, "status", "lastSuccessfulTime")
		return done
	})
}

func TestDaemonSet(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      runtimeClassName: CLASS
      terminationGracePeriodSeconds: 5
      containers: [{name: c, image: IMAGE(hello), imagePullPolicy: PULL, args: [sleep]}]
`)
	s.kubectl("rollout", "status", "daemonset/d", patiently)
}

// A Wasm program keeps its file when its pod is made anew, under the same name.
func TestStatefulSet(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      runtimeClassName: CLASS
      terminationGracePeriodSeconds: 5
      initContainers:
      - name: write
        image: IMAGE(envfiles)
        imagePullPolicy: PULL
        args: [write, /data/$(NAME), "of $(NAME)"]
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        volumeMounts: [{name: data, mountPath: /data}]
      containers:
      - name: c
        image: IMAGE(files)
        imagePullPolicy: PULL
        args: [sleep]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, hostPath: {path: /var/tmp/e2e-` + s.name + `, type: DirectoryOrCreate}}]
`)
	s.kubectl("rollout", "status", "statefulset/db", patiently)
	s.kubectl("delete", "pod", "db-0")
	s.kubectl("rollout", "status", "statefulset/db", patiently)
	s.pod("db-0", ready)
	for _, pod := range []string{"db-0", "db-1"} {
		if got := s.kubectl("exec", "db-0", "--", "/envfiles.wasm", "cat", "/data/"+pod); got != "of "+pod+"\n" {
			s.Errorf("%s: %q", pod, got)
		}
	}
}

// Wasm and ordinary containers in one pod: before the others, beside them, and added later.
func TestMixedPod(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  runtimeClassName: CLASS
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: linux, image: BUSYBOX, imagePullPolicy: PULL, command: [sh, -c, "echo from linux >/shared/linux"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: wasm, image: IMAGE(envfiles), imagePullPolicy: PULL, args: [write, /shared/wasm, from wasm], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: sidecar, image: BUSYBOX, imagePullPolicy: PULL, restartPolicy: Always, command: [httpd, -f, -p, "8090", -h, /shared], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: wasm-sidecar, image: IMAGE(http-server), imagePullPolicy: PULL, restartPolicy: Always, startupProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
  containers:
  - name: linux-main
    image: BUSYBOX
    imagePullPolicy: PULL
    command: [sh, -c, "cat /shared/*; wget -q -O - http://localhost:8080/; wget -q -O - http://localhost:8090/wasm"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: wasm-main, image: IMAGE(envfiles), imagePullPolicy: PULL, args: [cat, /shared/linux], volumeMounts: [{name: shared, mountPath: /shared}]}
`)
	for _, container := range []string{"linux-main", "wasm-main"} {
		if end := s.ended("mixed", container); end.ExitCode != 0 {
			s.Errorf("%s ended with %d: %s", container, end.ExitCode, s.kubectl("logs", "mixed", "-c", container))
		}
	}
	if log := s.kubectl("logs", "mixed", "-c", "linux-main"); log != "from linux\nfrom wasm\nHello from Slipway\nfrom wasm\n" {
		s.Errorf("linux-main: %q", log)
	}
	if log := s.kubectl("logs", "mixed", "-c", "wasm-main"); log != "from linux\n" {
		s.Errorf("wasm-main: %q", log)
	}
}

// A shell beside a program that has none.
func TestEphemeralContainer(t *testing.T) {
	s := space(t)
	s.apply(one("p", "http-server", ""))
	s.pod("p", ready)
	s.kubectl("debug", "p", "--image="+busybox, "--image-pull-policy="+pullPolicy, "-c", "shell", "--", "wget", "-q", "-O", "-", "http://localhost:8080/")
	s.logs("Hello from Slipway", "p", "-c", "shell")
	s.kubectl("debug", "p", "--image="+prefix+"hello:latest", "--image-pull-policy="+pullPolicy, "-c", "wasm", "--", "/hello.wasm", "later")
	s.logs("arguments: later", "p", "-c", "wasm")
}

// One ReplicaSet's pods side by side with an ordinary one's, on the same nodes.
func TestPodsOfBothKinds(t *testing.T) {
	s := space(t)
	set := `
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: %s}
spec:
  replicas: 3
  selector: {matchLabels: {app: %s}}
  template:
    metadata: {labels: {app: %s}}
    spec:
      %s
      terminationGracePeriodSeconds: 0
`
	s.apply(fmt.Sprintf(set, "wasm", "wasm", "wasm", `runtimeClassName: CLASS
      containers: [{name: c, image: IMAGE(hello), imagePullPolicy: PULL, args: [sleep]}]`))
	s.apply(fmt.Sprintf(set, "linux", "linux", "linux", `containers: [{name: c, image: BUSYBOX, imagePullPolicy: PULL, command: [sleep, "100000"]}]`))
	for _, name := range []string{"wasm", "linux"} {
		s.replicas("replicasets", name, 3)
	}
}
