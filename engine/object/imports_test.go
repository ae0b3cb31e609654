package object

import (
	"go/build"
	"strings"
	"testing"
)

// Decoding is pure, too: bytes in, values out.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pkg.Imports {
		first, _, _ := strings.Cut(path, "/")
		switch {
		case path == "os" || path == "time" || path == "net" || path == "net/http":
			t.Errorf("imports %s", path)
		case !strings.Contains(first, "."), first == "k8s.io", path == "go.yaml.in/yaml/v3", path == "weir.dev/weir/engine/rule":
		default:
			t.Errorf("imports %s", path)
		}
	}
}
