package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// Space is a namespace of one test.
type Space struct {
	*testing.T
	name string
}

// space makes the test one that runs beside others, in a namespace that ends with it.
func space(t *testing.T, labels ...string) *Space {
	t.Helper()
	t.Parallel()
	return alone(t, labels...)
}

// alone is a space of a test that others must not run beside.
func alone(t *testing.T, labels ...string) *Space {
	t.Helper()
	_, err := client.NodeV1().RuntimeClasses().Get(context.Background(), class, metav1.GetOptions{})
	if errors.IsNotFound(err) {
		t.Fatalf("the cluster has no RuntimeClass %q: install the chart, or name another one in E2E_RUNTIME_CLASS", class)
	} else if err != nil {
		t.Fatal(err)
	}
	namespace := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{"e2e.slipway.dev/test": "true"}}}
	for _, label := range labels {
		name, value, _ := strings.Cut(label, "=")
		namespace.Labels[name] = value
	}
	made, err := client.CoreV1().Namespaces().Create(context.Background(), namespace, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := &Space{t, made.Name}
	t.Cleanup(func() {
		if t.Failed() {
			s.tell()
		}
		if err := client.CoreV1().Namespaces().Delete(context.Background(), s.name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	// Pods are refused before it is there.
	until(s, "serviceaccounts", "default", func(*unstructured.Unstructured) bool { return true })
	return s
}

// tell says what there was when the test failed.
func (s *Space) tell() {
	for _, command := range []string{"get all -o wide", "get events --sort-by=.metadata.creationTimestamp"} {
		out, _ := exec.Command("kubectl", append(strings.Fields(command), "-n", s.name)...).CombinedOutput()
		s.Logf("kubectl %s\n%s", command, out)
	}
}

// manifest fills in what differs between clusters: CLASS, IMAGE(name) of an example, BUSYBOX, PULL.
func manifest(text string) string {
	text = regexp.MustCompile(`IMAGE\(([a-z0-9-]+)\)`).ReplaceAllString(text, prefix+"$1:latest")
	return strings.NewReplacer("CLASS", class, "BUSYBOX", busybox, "PULL", pullPolicy).Replace(text)
}

// apply makes the objects of a manifest.
func (s *Space) apply(text string) {
	s.Helper()
	if err := s.try(text); err != nil {
		s.Fatal(err)
	}
}

// try makes the objects of a manifest, or says why the cluster refuses one.
func (s *Space) try(text string) error {
	s.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest(text)), 1<<16)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); err != nil {
			if err.Error() == "EOF" {
				return nil
			}
			s.Fatalf("%v\n%s", err, manifest(text))
		}
		if object.Object == nil {
			continue
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			s.Fatal(err)
		}
		var of dynamic.ResourceInterface = objects.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			of = objects.Resource(mapping.Resource).Namespace(s.name)
		} else {
			name := object.GetName()
			s.Cleanup(func() { _ = of.Delete(context.Background(), name, metav1.DeleteOptions{}) })
		}
		if _, err := of.Apply(context.Background(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "e2e", Force: true}); err != nil {
			return err
		}
	}
}

// until waits until an object of the namespace is as wanted, and returns it.
func until(s *Space, resource, name string, wanted func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	s.Helper()
	return untilWithin(s, patience, resource, name, wanted)
}

func untilWithin(s *Space, bound time.Duration, resource, name string, wanted func(*unstructured.Unstructured) bool) *unstructured.Unstructured {
	s.Helper()
	gvr, err := mapper.ResourceFor(schema.GroupVersionResource{Resource: resource})
	if err != nil {
		s.Fatal(err)
	}
	of := objects.Resource(gvr).Namespace(s.name)
	selected := fields.OneTermEqualSelector("metadata.name", name).String()
	list := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selected
			return of.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selected
			return of.Watch(ctx, options)
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	var last *unstructured.Unstructured
	_, err = watchtools.UntilWithSync(ctx, list, &unstructured.Unstructured{}, nil, func(event watch.Event) (bool, error) {
		last, _ = event.Object.(*unstructured.Unstructured)
		return event.Type != watch.Deleted && last != nil && wanted(last), nil
	})
	if err != nil {
		s.Fatalf("%s %s never came to be: %v\n%s", resource, name, err, describe(last))
	}
	return last
}

func describe(object *unstructured.Unstructured) string {
	if object == nil {
		return "there is none"
	}
	status, _ := object.Object["status"].(map[string]any)
	return fmt.Sprintf("its status: %v", status)
}

// pod waits until a pod is as wanted.
func (s *Space) pod(name string, wanted func(*v1.Pod) bool) *v1.Pod {
	s.Helper()
	return s.podWithin(patience, name, wanted)
}

func (s *Space) podWithin(bound time.Duration, name string, wanted func(*v1.Pod) bool) *v1.Pod {
	s.Helper()
	var pod *v1.Pod
	untilWithin(s, bound, "pods", name, func(object *unstructured.Unstructured) bool {
		pod = &v1.Pod{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, pod); err != nil {
			s.Fatal(err)
		}
		return wanted(pod)
	})
	return pod
}

func phase(phase v1.PodPhase) func(*v1.Pod) bool {
	return func(pod *v1.Pod) bool { return pod.Status.Phase == phase }
}

func ready(pod *v1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == v1.PodReady {
			return condition.Status == v1.ConditionTrue
		}
	}
	return false
}

// restarted is a pod whose first container has been started again that often.
func restarted(times int32) func(*v1.Pod) bool {
	return func(pod *v1.Pod) bool {
		return len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].RestartCount >= times
	}
}

// ended waits for the end of a pod's containers, and returns that of the named one.
func (s *Space) ended(pod, container string) *v1.ContainerStateTerminated {
	s.Helper()
	done := s.pod(pod, func(pod *v1.Pod) bool {
		return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
	})
	for _, status := range done.Status.ContainerStatuses {
		if status.Name == container {
			return status.State.Terminated
		}
	}
	s.Fatalf("pod %s has no container %s", pod, container)
	return nil
}

// kubectl runs it in the namespace and returns what it says on stdout.
func (s *Space) kubectl(args ...string) string {
	s.Helper()
	out, errors, err := s.kubectlWith("", args...)
	if err != nil {
		s.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out, errors)
	}
	return out
}

// kubectlWith runs it with a text on stdin.
func (s *Space) kubectlWith(stdin string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, "kubectl", append([]string{"-n", s.name}, args...)...)
	command.Stdin = strings.NewReader(stdin)
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	err = command.Run()
	return out.String(), complaints.String(), err
}

// exits runs kubectl, which must end with this status, and returns all it says.
func (s *Space) exits(status int, args ...string) string {
	s.Helper()
	out, errors, err := s.kubectlWith("", args...)
	code := 0
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		s.Fatal(err)
	}
	if code != status {
		s.Fatalf("kubectl %s: status %d, not %d\n%s%s", strings.Join(args, " "), code, status, out, errors)
	}
	return out + errors
}

// logs waits until a container's log has this text.
func (s *Space) logs(text string, args ...string) string {
	s.Helper()
	return s.says(text, append([]string{"logs"}, args...)...)
}

// says waits until what kubectl prints has this text.
func (s *Space) says(text string, args ...string) string {
	s.Helper()
	deadline := time.Now().Add(patience)
	for {
		out, errors, err := s.kubectlWith("", args...)
		if strings.Contains(out, text) {
			return out
		}
		if time.Now().After(deadline) {
			s.Fatalf("kubectl %s never says %q: %v\n%s%s", strings.Join(args, " "), text, err, out, errors)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (s *Space) contains(text string, wanted ...string) {
	s.Helper()
	for _, part := range wanted {
		if !strings.Contains(text, part) {
			s.Errorf("%q is not in\n%s", part, text)
		}
	}
}
