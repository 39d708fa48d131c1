// fields prints every field of config.json, or of the CRI messages that a pod is made of, one a line. `make` does not run
// it: shim/spec/fields/*.txt are its output, kept, so that a test needs no network. After a new version of a module:
//
//	go run . oci >../../shim/spec/fields/oci.txt; go run . cri >../../shim/spec/fields/cri.txt
package main

import (
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// walk calls note with the path of every field that holds no further ones. A list's elements are `[]`, a map's values `{}`.
func walk(t reflect.Type, path string, note func(string)) {
	switch t.Kind() {
	case reflect.Pointer:
		walk(t.Elem(), path, note)
	case reflect.Slice:
		elements(t.Elem(), path, "[]", note)
	case reflect.Map:
		elements(t.Elem(), path, "{}", note)
	case reflect.Struct:
		for i := range t.NumField() {
			field := t.Field(i)
			platforms := field.Tag.Get("platform")
			if platforms != "" && !slices.Contains(strings.Split(platforms, ","), "linux") {
				continue
			}
			if field.Anonymous {
				walk(field.Type, path, note)
			} else if name := name(field); name != "" {
				walk(field.Type, strings.TrimPrefix(path+"."+name, "."), note)
			}
		}
	default:
		note(path)
	}
}

// elements goes into structures only: a list of texts is one field.
func elements(t reflect.Type, path, sign string, note func(string)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Struct {
		path += sign
	}
	walk(t, path, note)
}

func name(field reflect.StructField) string {
	if wire := field.Tag.Get("protobuf"); wire != "" {
		for part := range strings.SplitSeq(wire, ",") {
			if name, found := strings.CutPrefix(part, "name="); found {
				return name
			}
		}
	}
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return name
}

func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			return module + " " + dependency.Version
		}
	}
	return module
}

func main() {
	var fields []string
	note := func(path string) {
		if !strings.HasPrefix(path, "windows") && !strings.Contains(path, ".windows.") {
			fields = append(fields, path)
		}
	}
	switch strings.Join(os.Args[1:], " ") {
	case "oci":
		fmt.Println("# config.json, the parts for Linux:", version("github.com/opencontainers/runtime-spec"))
		walk(reflect.TypeFor[specs.Spec](), "", note)
	case "cri":
		fmt.Println("# CRI, runtime.v1:", version("k8s.io/cri-api"))
		walk(reflect.TypeFor[cri.PodSandboxConfig](), "PodSandboxConfig", note)
		walk(reflect.TypeFor[cri.ContainerConfig](), "ContainerConfig", note)
	default:
		fmt.Fprintln(os.Stderr, "usage: fields oci|cri")
		os.Exit(2)
	}
	for _, field := range fields {
		fmt.Println(field)
	}
}
