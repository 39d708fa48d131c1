package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The manifests that users copy, as they are.
func TestExamples(t *testing.T) {
	folder := variable("E2E_EXAMPLES", "../../examples")
	if _, err := os.Stat(folder); err != nil {
		t.Skip(err)
	}
	for name, check := range map[string]func(s *Space){
		"job": func(s *Space) {
			s.kubectl("wait", "--for=condition=Complete", "job/wordcount", patiently)
			s.contains(s.kubectl("logs", "job/wordcount"), "the")
		},
		"cronjob": func(s *Space) {
			// When it is time for its own Job, its history has no place for another.
			s.kubectl("patch", "cronjob/greeting", "--patch", `{"spec": {"suspend": true}}`)
			s.kubectl("create", "job", "--from=cronjob/greeting", "now")
			s.kubectl("wait", "--for=condition=Complete", "job/now", patiently)
			s.contains(s.kubectl("logs", "job/now"), "arguments: from a CronJob")
		},
		"deployment": func(s *Space) {
			s.kubectl("rollout", "status", "deployment/http-server", patiently)
			s.apply(caller)
			s.pod("caller", ready)
			s.contains(s.kubectl("exec", "caller", "--", "wget", "-q", "-O", "-", "http://http-server/"), "Hello from Slipway")
		},
		"init-linux": func(s *Space) {
			if end := s.ended("init-linux", "cpp-wordcount"); end.ExitCode != 0 {
				s.Errorf("ended with %d", end.ExitCode)
			}
			s.contains(s.kubectl("logs", "init-linux"), "100")
		},
		"init-wasm": func(s *Space) {
			s.pod("init-wasm", ready)
			s.contains(s.kubectl("exec", "init-wasm", "-c", "web", "--", "wget", "-q", "-O", "-", "http://localhost:8080/index.html"), "Hello from Wasm")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := space(t)
			text, err := os.ReadFile(filepath.Join(folder, "kubernetes", name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			s.apply(strings.ReplaceAll(string(text), "runtimeClassName: slipway", "runtimeClassName: CLASS"))
			check(s)
		})
	}
}
