package policy

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := New()
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	return out.String(), err
}

const documents = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - {}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: q, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoint: []
`

func TestLintTellsRefusalsAndWarnings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	for path, text := range map[string]string{file: documents, filepath.Join(dir, "notes.txt"): "a: ["} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := run(t, "", "lint", dir)
	if err == nil {
		t.Error("a refused document does not fail the command")
	}
	want := []string{
		file + ":13: CiliumNetworkPolicy/shop/q refused: line 19: spec.ingress[0].fromEndpoint: unknown field: check its spelling and place",
		file + ":5: CiliumNetworkPolicy/shop/p warning: line 11: spec.ingress[0]: has neither peers nor ports: it allows nothing, and closes what no other rule opens",
		"2 objects accepted, 1 refused, 1 warnings",
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(out), "\n")); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestLintReadsStandardInput(t *testing.T) {
	out, err := run(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n", "lint", "-", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(report{Objects: 1, Findings: []finding{}}, r); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestLintRefusesWhatIsNotThere(t *testing.T) {
	if _, err := run(t, "", "lint", filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Error("no error")
	}
	if _, err := run(t, "", "lint", "-", "-o", "xml"); err == nil {
		t.Error("no error for -o xml")
	}
}
