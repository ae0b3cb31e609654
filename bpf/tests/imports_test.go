// Package tests runs Weir's BPF programs: under test run on frames that were
// never on a wire, and attached in namespaces of its own with real connections.
// It needs root and kernel 6.6.
package tests

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The bindings are for anybody to import, so they bring nothing along.
func TestImports(t *testing.T) {
	allowed := []string{"github.com/cilium/ebpf", "weir.dev/weir/bpf/datapath"}
	for _, pattern := range []string{"../datapath/*.go", "../judgetest/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("files of %s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(path, ".") && !slices.Contains(allowed, path) {
					t.Errorf("%s imports %s", file, path)
				}
			}
		}
	}
}
