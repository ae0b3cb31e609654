package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTutorial runs what a newcomer runs, and wants every line of it.
func TestTutorial(t *testing.T) {
	d := at("it-tutorial")
	out, code := d.try(t, "", "demo", "run", "--name", d.name, "--files", filepath.Join(the.root, "examples", "tutorial"))
	t.Cleanup(func() { d.try(t, "", "demo", "down", "--name", d.name) })
	if code != 0 || strings.Contains(out, "✗") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, line := range []string{
		"✓ in force on every node (3/3)",
		"✓ app2 gets /public",
		"✓ status 403, Access denied, with its reason",
		"✓ time-out for /public, with its reason",
		"✓ time-out for port 8080, with its reason",
		"✓ app3 gets /private again",
		"✓ everything was shown",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no line says %q:\n%s", line, out)
		}
	}
	for _, cell := range []string{
		"✓ IPv4  same node   by Service ", "✓ IPv4  same node   by pod address", "✓ IPv4  other node  by Service ", "✓ IPv4  other node  by pod address",
		"✓ IPv6  same node   by Service ", "✓ IPv6  same node   by pod address", "✓ IPv6  other node  by Service ", "✓ IPv6  other node  by pod address",
	} {
		if n := strings.Count(out, cell); n != 2 {
			t.Errorf("cell %q stands %d times, want 2: without a policy, and with it", cell, n)
		}
	}
}

// The policy of the tutorial is the one of the product's brief, byte for byte.
func TestTutorialsPolicyIsTheOneOfTheBrief(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(the.root, "examples", "tutorial", "policy-v1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"apiVersion: 'cilium.io/v1'\n", "          rules:\n            HTTP:\n              - method: 'GET'\n                path: '/public'"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("examples/tutorial/policy-v1.yaml lacks %q", want)
		}
	}
}
