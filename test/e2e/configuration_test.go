package e2e

import (
	"testing"
)

// All that Kubernetes puts into a container, as a Wasm program sees it.
func TestConfiguration(t *testing.T) {
	s := space(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, file.txt: "first\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {tier: test}, annotations: {note: "of the pod"}}
spec:
  runtimeClassName: CLASS
  terminationGracePeriodSeconds: 2
  containers:
  - name: c
    image: IMAGE(files)
    imagePullPolicy: PULL
    args: [sleep]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 32Mi}}
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: secret, key: password}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    envFrom: [{configMapRef: {name: settings}, prefix: ALL_}]
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one.txt, subPath: file.txt}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: empty, mountPath: /empty}
    - {name: empty, mountPath: /sub, subPath: below}
    - {name: memory, mountPath: /memory}
    - {name: info, mountPath: /info}
    - {name: host, mountPath: /host, readOnly: true}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: secret, secret: {secretName: secret, defaultMode: 0400}}
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: /etc, type: Directory}}
  - name: info
    projected:
      sources:
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
      - serviceAccountToken: {path: token, expirationSeconds: 3600, audience: e2e}
`)
	pod := s.pod("p", ready)
	run := func(args ...string) string {
		return s.kubectl(append([]string{"exec", "p", "--", "/envfiles.wasm"}, args...)...)
	}
	s.contains(run("env"), "COLOUR=blue\n", "PASSWORD=swordfish\n", "POD=p\n", "ADDRESS="+pod.Status.PodIP+"\n", "MEMORY=33554432\n", "ALL_colour=blue\n",
		"KUBERNETES_SERVICE_HOST=")
	for file, content := range map[string]string{
		"/settings/file.txt": "first\n", "/one.txt": "first\n", "/secret/password": "swordfish", "/info/labels": `tier="test"`, "/info/note": "of the pod",
	} {
		if got := run("cat", file); got != content {
			s.Errorf("%s: %q", file, got)
		}
	}
	s.contains(run("cat", "/info/token"), ".")
	s.contains(run("cat", "/var/run/secrets/kubernetes.io/serviceaccount/namespace"), s.name)
	run("write", "/empty/file", "kept")
	run("write", "/sub/file", "below")
	s.contains(run("cat", "/empty/below/file"), "below")
	run("write", "/memory/file", "kept")
	for _, file := range []string{"/host/e2e", "/secret/new", "/settings/new"} {
		s.contains(s.exits(1, "exec", "p", "--", "/envfiles.wasm", "write", file, "x"), "ead-only file system")
	}
	s.contains(run("cat", "/host/hostname"), "")

	// A ConfigMap that changes reaches the volume of a running program.
	s.kubectl("patch", "configmap", "settings", "-p", `{"data":{"file.txt":"second\n"}}`)
	// The kubelet looks at a pod's volumes when the pod changes, else once a minute.
	s.kubectl("annotate", "pod", "p", "changed=now")
	s.says("second", "exec", "p", "--", "/envfiles.wasm", "cat", "/settings/file.txt")
}

// Names of the cluster, from a Wasm program.
func TestNames(t *testing.T) {
	s := space(t)
	s.apply(web)
	s.apply(one("p", "network", `args: [lookup, web]`))
	end := s.ended("p", "c")
	if end.ExitCode != 0 {
		s.Errorf("%d: %s", end.ExitCode, s.kubectl("logs", "p"))
	}
	address := s.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	s.contains(s.kubectl("logs", "p"), address)
}
