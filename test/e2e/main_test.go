// Package e2e tests Slipway on a cluster as its users see it: by kubectl and by the API. It needs nothing but a kubeconfig and a
// cluster that has the RuntimeClass; see docs/testing.md for the variables.
package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

var (
	// The RuntimeClass under test.
	class = variable("E2E_RUNTIME_CLASS", "slipway")
	// What images are called: prefix of the examples, and an ordinary image with a shell.
	prefix  = variable("E2E_IMAGES", "slipway.dev/examples/")
	busybox = variable("E2E_BUSYBOX", "docker.io/library/busybox:1.37")
	// Never for images that were loaded into the nodes, else IfNotPresent.
	pullPolicy = variable("E2E_PULL_POLICY", "Never")
	// A command that runs its arguments as root on the node, for tests of what happens there.
	onNode = strings.Fields(os.Getenv("E2E_NODE"))
	// Bound of every wait for something that the cluster does; the same for kubectl's, and half of it for what only has to end.
	patience  time.Duration
	patiently string
	promptly  string

	config  *rest.Config
	client  *kubernetes.Clientset
	objects *dynamic.DynamicClient
	mapper  *restmapper.DeferredDiscoveryRESTMapper
)

func variable(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := connect(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	status := m.Run()
	if err := emptied(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	os.Exit(status)
}

func connect() error {
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		return fmt.Errorf("KUBECONFIG is not set: name the cluster's kubeconfig, or use make e2e")
	}
	var err error
	if patience, err = time.ParseDuration(variable("E2E_PATIENCE", "2m")); err != nil {
		return fmt.Errorf("E2E_PATIENCE: %w", err)
	}
	patiently = "--timeout=" + patience.String()
	promptly = "--timeout=" + (patience / 2).String()
	if config, err = clientcmd.BuildConfigFromFlags("", path); err != nil {
		return err
	}
	// Tests run side by side.
	config.QPS, config.Burst = 100, 200
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if objects, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	return nil
}

// emptied waits until the tests' namespaces are gone: whatever hangs in one shows here.
func emptied() error {
	deadline := time.Now().Add(patience)
	for {
		list, err := client.CoreV1().Namespaces().List(context.Background(), metav1.ListOptions{LabelSelector: "e2e.slipway.dev/test"})
		if err != nil || len(list.Items) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			var left []string
			for _, namespace := range list.Items {
				left = append(left, namespace.Name)
			}
			return fmt.Errorf("namespaces that do not end: %s", strings.Join(left, ", "))
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// node runs a command on the node; a test without one is skipped.
func node(t *testing.T, command ...string) string {
	t.Helper()
	if len(onNode) == 0 {
		t.Skip("E2E_NODE names no command that reaches the node")
	}
	run := exec.Command(onNode[0], append(onNode[1:], command...)...)
	var stdout, stderr bytes.Buffer
	run.Stdout, run.Stderr = &stdout, &stderr
	if err := run.Run(); err != nil {
		t.Fatalf("on the node: %s: %v\n%s%s", strings.Join(command, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// mainPID is the process of a service on the node.
func mainPID(t *testing.T, unit string) string {
	t.Helper()
	return strings.TrimSpace(node(t, "systemctl", "show", "-P", "MainPID", unit))
}
