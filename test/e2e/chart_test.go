package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// What an installer may touch: files, services, mounts and processes of the node, and what Kubernetes knows of it.
func nodeState(t *testing.T) string {
	t.Helper()
	files := node(t, "find", "/etc", "/opt", "/usr/local", "/usr/bin", "/usr/sbin", "/var/lib", "/var/tmp", "-xdev",
		"(", "-path", "/var/lib/kubelet", "-o", "-path", "/var/lib/containerd", "-o", "-path", "/var/lib/etcd", "-o", "-path", "/var/lib/cni",
		"-o", "-path", "/var/lib/systemd", ")", "-prune", "-o", "-printf", `%p %y %m %U %l\n`)
	content := node(t, "sh", "-c", "find /etc/containerd -type f -exec sha256sum {} +")
	services := node(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,socket,timer")
	mounts := node(t, "sh", "-c", "cut -d' ' -f2 /proc/mounts | grep -vE 'kubelet|containerd|netns' | sort")
	processes := node(t, "sh", "-c", "pgrep -fa [/]opt/slipway || true")
	return strings.Join([]string{files, content, services, mounts, processes}, "\n")
}

func helm(t *testing.T, args ...string) {
	t.Helper()
	if out, err := tryHelm(args...); err != nil {
		helmFailed(t, "helm "+strings.Join(args, " ")+": "+err.Error(), out)
	}
}

func helmFailed(t *testing.T, what, said string) {
	t.Helper()
	for _, command := range []string{"logs -l app.kubernetes.io/name=slipway --all-containers --tail=-1", "get pods,events"} {
		out, _ := exec.Command("kubectl", append([]string{"-n", "slipway-system"}, strings.Fields(command)...)...).CombinedOutput()
		said += "\n" + string(out)
	}
	t.Fatalf("%s\n%s", what, said)
}

func tryHelm(args ...string) (string, error) {
	out, err := exec.Command("helm", append(args, "--namespace", "slipway-system")...).CombinedOutput()
	return string(out), err
}

// rolledOut runs helm with what this cluster needs, whose images were loaded into the nodes, and waits for the nodes.
func rolledOut(t *testing.T, args ...string) {
	t.Helper()
	helm(t, append(args, "--timeout", "3m")...)
	status := exec.Command("kubectl", "-n", "slipway-system", "rollout", "status", "daemonset/slipway-installer", "--timeout=3m")
	if out, err := status.CombinedOutput(); err != nil {
		helmFailed(t, "the installers are not ready", string(out))
	}
}

func values(chart string) []string {
	return []string{chart, "--set", "image.pullPolicy=" + pullPolicy, "--set", "test.pullPolicy=" + pullPolicy}
}

// The life of an installation: made, tested, changed while pods run, taken back, removed; the node is then as it was.
func TestChart(t *testing.T) {
	node(t, "true")
	if _, err := exec.LookPath("helm"); err != nil {
		t.Skip("helm is not there")
	}
	chart, err := filepath.Abs(variable("E2E_CHART", "../../charts/slipway"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(chart); err != nil {
		t.Fatal(err)
	}
	before := nodeState(t)
	first := mainPID(t, "containerd")
	rolledOut(t, append([]string{"install", "slipway", "--create-namespace"}, values(chart)...)...)
	if mainPID(t, "containerd") == first {
		t.Error("containerd has not been restarted: who loaded its new configuration?")
	}
	s := alone(t)
	s.contains(s.kubectl("get", "nodes", "-L", "slipway.dev/installed"), "true")
	// containerd 1.7 tells the kubelet of none.
	if handlers := s.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.runtimeHandlers[*].name}"); handlers != "" {
		s.contains(handlers, "slipway")
	}
	helm(t, "test", "slipway", "--logs")
	// Its pod was counted, by the node that it ran on.
	started := 0
	for _, installer := range strings.Fields(s.kubectl("-n", "slipway-system", "get", "pods", "-l", "app.kubernetes.io/component=installer",
		"-o", "jsonpath={.items[*].metadata.name}")) {
		served := s.kubectl("get", "--raw", "/api/v1/namespaces/slipway-system/pods/"+installer+":9464/proxy/metrics")
		for _, count := range regexp.MustCompile(`(?m)^slipway_start_seconds_count.* (\d+)$`).FindAllStringSubmatch(served, -1) {
			number, _ := strconv.Atoi(count[1])
			started += number
		}
	}
	if started != 1 {
		t.Errorf("%d starts were counted, one there was", started)
	}
	s.contains(s.kubectl("-n", "slipway-system", "exec", "daemonset/slipway-installer", "--", "/opt/slipway/bin/slipway", "doctor", "--host"),
		"== checks", "runtimes.slipway.runtime_type = ", "== Kubernetes", "label slipway.dev/installed=true", ": Ready")

	// The same again changes nothing, and nobody notices.
	s.apply(lasting("p", "files", serving))
	s.pod("p", ready)
	second := mainPID(t, "containerd")
	rolledOut(t, append([]string{"upgrade", "slipway"}, values(chart)...)...)
	if mainPID(t, "containerd") != second {
		t.Error("an upgrade that changes nothing has restarted containerd")
	}
	// Another handler for those who come from another shim.
	rolledOut(t, append([]string{"upgrade", "slipway", "--set", "runtimeClass.aliases={wasmedge}"}, values(chart)...)...)
	s.apply(strings.Replace(one("alias", "hello", ""), "CLASS", "wasmedge", 1))
	if end := s.ended("alias", "c"); end.ExitCode != 0 {
		t.Errorf("the alias's pod ended with %d", end.ExitCode)
	}
	rolledOut(t, "rollback", "slipway", "2")
	if out, err := exec.Command("kubectl", "get", "runtimeclass", "wasmedge").CombinedOutput(); err == nil {
		t.Errorf("after the rollback: %s", out)
	}
	running := s.pod("p", ready)
	if running.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the pod was started again meanwhile")
	}

	// Whoever runs pods is asked to end them first.
	if out, err := tryHelm("uninstall", "slipway", "--wait", "--timeout", "2m"); err == nil {
		t.Fatalf("uninstalled under a running pod: %s", out)
	}
	if s.pod("p", phase(v1.PodRunning)).Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the pod was started again by a refused uninstall")
	}
	s.kubectl("delete", "pod", "--all")
	helm(t, "uninstall", "slipway", "--wait", "--timeout", "3m")
	if labels := s.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}"); strings.Contains(labels, "slipway.dev") {
		t.Errorf("labels: %s", labels)
	}
	if after := nodeState(t); after != before {
		t.Errorf("the node is not as it was:\n%s", difference(before, after))
	}
}

// difference is what lines were lost and which came.
func difference(before, after string) string {
	lines := func(text string) map[string]bool {
		set := map[string]bool{}
		for line := range strings.Lines(text) {
			set[line] = true
		}
		return set
	}
	old, now := lines(before), lines(after)
	var out strings.Builder
	for line := range old {
		if !now[line] {
			out.WriteString("- " + line)
		}
	}
	for line := range now {
		if !old[line] {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}
