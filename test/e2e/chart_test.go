package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

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

	for _, interruption := range interruptions {
		t.Run(interruption.name, func(t *testing.T) {
			before := nodeState(t)
			rolledOut(t, append([]string{"install", "slipway"}, values(chart)...)...)
			interruption.happens(alone(t), chart)
			helm(t, "uninstall", "slipway", "--wait", "--timeout", "3m")
			if labels := labels(t); strings.Contains(labels, "slipway.dev") {
				t.Errorf("labels: %s", labels)
			}
			if after := nodeState(t); after != before {
				t.Errorf("the node is not as it was:\n%s", difference(before, after))
			}
		})
	}
	t.Run("a first installation that fails", func(t *testing.T) {
		before := nodeState(t)
		broken(t)
		helm(t, append([]string{"install", "slipway", "--timeout", "3m"}, values(chart)...)...)
		eventually(t, "the installer says why", func() bool { return strings.Contains(installerLog(), "containerd refuses") })
		mended(t)
		// The installer tries again some time; nobody waits for that here.
		helm(t, "uninstall", "slipway", "--wait", "--timeout", "3m")
		if after := nodeState(t); after != before {
			t.Errorf("the node is not as it was:\n%s", difference(before, after))
		}
	})
}

// What may happen to an installation, each time to a new one; uninstalled afterwards, it leaves nothing.
var interruptions = []struct {
	name    string
	happens func(s *Space, chart string)
}{
	{"an uninstallation that is refused and taken back", func(s *Space, chart string) {
		own := s.name + "-own"
		s.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: " + own + "}\nhandler: slipway\n")
		s.Cleanup(func() { _ = exec.Command("kubectl", "delete", "runtimeclass", own).Run() })
		s.apply(strings.Replace(lasting("p", "files", serving), "CLASS", own, 1))
		s.pod("p", ready)
		out, err := tryHelm("uninstall", "slipway", "--wait", "--timeout", "2m")
		if err == nil {
			s.Fatalf("uninstalled under a running pod: %s", out)
		}
		s.contains(installerAndHookLog(), s.name+"/p", "helm rollback slipway 1 ")
		s.contains(labels(s.T), "\"slipway.dev/installed\":\"true\"")
		rolledOut(s.T, "rollback", "slipway", "1")
		s.kubectl("delete", "pod", "p")
		s.works()
	}},
	{"an uninstallation that is late and taken back", func(s *Space, chart string) {
		rolledOut(s.T, append([]string{"upgrade", "slipway", "--set", "uninstall.timeout=40s"}, values(chart)...)...)
		// Something hinders the node, as a pod would that came meanwhile. Its end is a failure where its child ends first: nothing of it
		// is to be left even then.
		node(s.T, "systemd-run", "--collect", "--unit=e2e-hinder", "flock", "/opt/slipway/state/lock", "sleep", "infinity")
		s.Cleanup(func() { _ = exec.Command(onNode[0], append(onNode[1:], "systemctl", "stop", "e2e-hinder")...).Run() })
		if out, err := tryHelm("uninstall", "slipway", "--timeout", "2m"); err == nil {
			s.Fatalf("uninstalled: %s", out)
		}
		helm(s.T, "rollback", "slipway", "2", "--timeout", "3m")
		node(s.T, "systemctl", "stop", "e2e-hinder")
		s.works()
	}},
	{"an installer that is deleted by force while it uninstalls", func(s *Space, chart string) {
		done := make(chan string, 1)
		go func() {
			out, err := tryHelm("uninstall", "slipway", "--wait", "--timeout", "3m")
			if err != nil {
				out += err.Error()
			} else {
				out = ""
			}
			done <- out
		}()
		eventually(s.T, "the installer begins to uninstall", func() bool { return strings.Contains(labels(s.T), "uninstalling") })
		_ = exec.Command("kubectl", "-n", "slipway-system", "delete", "pod", "-l", "app.kubernetes.io/component=installer", "--force").Run()
		if failed := <-done; failed != "" {
			helmFailed(s.T, "helm uninstall", failed)
		}
		// The empty directory may be there: the kubelet makes it for the installer's next pod, which finds nothing to do.
		s.contains(node(s.T, "sh", "-c", "test -e /opt/slipway/current && echo there || echo gone"), "gone")
		// For the uninstallation that ends each of these.
		rolledOut(s.T, append([]string{"install", "slipway"}, values(chart)...)...)
	}},
	{"another install directory", func(s *Space, chart string) {
		rolledOut(s.T, append([]string{"upgrade", "slipway", "--set", "node.installDir=/opt/other"}, values(chart)...)...)
		s.works()
		s.contains(node(s.T, "sh", "-c", "test -e /opt/slipway/current && echo there || echo gone"), "gone")
	}},
	{"a failing check", func(s *Space, chart string) {
		broken(s.T)
		s.kubectl("-n", "slipway-system", "delete", "pod", "-l", "app.kubernetes.io/component=installer", "--wait")
		eventually(s.T, "the installer says why", func() bool { return strings.Contains(installerLog(), "containerd refuses") })
		s.works()
		mended(s.T)
		rolledOut(s.T, append([]string{"upgrade", "slipway"}, values(chart)...)...)
	}},
	{"an alias that is removed under its pods", func(s *Space, chart string) {
		rolledOut(s.T, append([]string{"upgrade", "slipway", "--set", "runtimeClass.aliases={wasmedge}"}, values(chart)...)...)
		s.apply(strings.Replace(lasting("p", "files", serving), "CLASS", "wasmedge", 1))
		s.pod("p", ready)
		rolledOut(s.T, append([]string{"upgrade", "slipway"}, values(chart)...)...)
		s.contains(installerLog(), "handler wasmedge stays until its pods have ended")
		s.pod("p", ready)
		s.kubectl("delete", "pod", "p")
	}},
}

// works says that a new pod comes to the node and ends well.
func (s *Space) works() {
	s.Helper()
	eventually(s.T, "pods may come to the node", func() bool {
		return strings.Contains(labels(s.T), "\"slipway.dev/installed\":\"true\"")
	})
	s.apply(one("works", "hello", ""))
	if end := s.ended("works", "c"); end.ExitCode != 0 {
		s.Errorf("a pod ended with %d", end.ExitCode)
	}
}

// broken puts a mistake into containerd's configuration, which containerd does not read again by itself.
func broken(t *testing.T) {
	t.Helper()
	node(t, "sh", "-c", "cp -p /etc/containerd/config.toml /root/e2e-config.toml && echo '[mistake' >>/etc/containerd/config.toml")
	t.Cleanup(func() {
		restore := "! test -e /root/e2e-config.toml || mv /root/e2e-config.toml /etc/containerd/config.toml"
		_ = exec.Command(onNode[0], append(onNode[1:], "sh", "-c", restore)...).Run()
	})
}

func mended(t *testing.T) {
	t.Helper()
	node(t, "mv", "/root/e2e-config.toml", "/etc/containerd/config.toml")
}

func labels(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("kubectl", "get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}").CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl get nodes: %v: %s", err, out)
	}
	return string(out)
}

func installerLog() string {
	out, _ := exec.Command("kubectl", "-n", "slipway-system", "logs", "-l", "app.kubernetes.io/component=installer", "--tail=-1").CombinedOutput()
	return string(out)
}

func installerAndHookLog() string {
	out, _ := exec.Command("kubectl", "-n", "slipway-system", "logs", "-l", "app.kubernetes.io/component=uninstaller", "--tail=-1").CombinedOutput()
	return installerLog() + string(out)
}

// eventually waits for what the cluster or a node does.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			helmFailed(t, "in vain until "+what, labels(t))
		}
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
