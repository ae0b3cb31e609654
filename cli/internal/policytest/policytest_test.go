package policytest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The recorded verdicts are the judge: every scenario that Weir supports passes,
// and what it does not support is known by number, so that none drops out
// unseen.
func TestRecordedVerdicts(t *testing.T) {
	for _, tc := range []struct {
		file            string
		passed, skipped int
		questions       int
	}{
		{"testdata/ciliumpolicy.tar.xz", 214, 31, 8904},
		{"testdata/v1", 9, 0, 38},
		{"testdata/networkpolicy.tar.xz", 360, 0, 190800},
	} {
		t.Run(filepath.Base(tc.file), func(t *testing.T) {
			scenarios, err := load(tc.file)
			if err != nil {
				t.Fatal(err)
			}
			r := Options{OnlySupported: true}.run(scenarios)
			for _, f := range r.Failures {
				t.Error(f)
			}
			if r.Passed != tc.passed || len(r.Skipped) != tc.skipped || r.Questions != tc.questions {
				t.Errorf("got %s, want %d passed, %d skipped, %d questions", r.Summary(), tc.passed, tc.skipped, tc.questions)
			}
		})
	}
}

const objects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: c}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {containers: [{name: c, image: c}]}
status: {podIP: 10.0.0.2}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/24}}]
    ports: [{port: 80}]
`

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := New()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	return out.String(), err
}

func TestWrongAnswersAreNamedBySideAndJudge(t *testing.T) {
	dir := write(t, map[string]string{
		"one/objects.yaml": objects,
		"one/expect.json": `{"queries":[{"from":"shop/web","to":"shop/api","port":80,"protocol":"TCP","verdict":"deny"},
			{"from":"shop/web","to":"shop/api","port":81,"protocol":"TCP","verdict":"deny","ingress":"deny","egress":"allow"}]}`,
	})
	out, err := execute(t, dir)
	if err == nil {
		t.Error("the command succeeded")
	}
	want := []string{
		"FAIL one: shop/web to shop/api 80/TCP: engine, both: want deny, got allow",
		"FAIL one: shop/web to shop/api 80/TCP: specification, both: want deny, got allow",
		"0 passed, 1 failed, 0 skipped (2 questions, 0 HTTP requests; 0 questions not asked)",
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(out), "\n")); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestSwitchSaysWhetherCIDRsSelectPods(t *testing.T) {
	dir := write(t, map[string]string{
		"objects.yaml": objects,
		"expect.json":  `{"queries":[{"from":"shop/web","to":"shop/api","port":80,"protocol":"TCP","verdict":"allow"}]}`,
	})
	if out, err := execute(t, dir); err != nil {
		t.Errorf("by default: %v\n%s", err, out)
	}
	if out, err := execute(t, dir, "--cidr-selects-pods=false"); err == nil {
		t.Errorf("with the switch off it passed:\n%s", out)
	}
}

func TestUnsupportedObjectsFailUnlessLeftOut(t *testing.T) {
	dir := write(t, map[string]string{
		"s/objects.yaml": `{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.example}]}]}}`,
		"s/expect.json":  `{"queries":[]}`,
	})
	if out, err := execute(t, dir); err == nil {
		t.Errorf("passed:\n%s", out)
	}
	out, err := execute(t, dir, "--only-supported", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Reason, "spec.egress[0].toFQDNs") {
		t.Errorf("skipped: %v", r.Skipped)
	}
}

func TestExpectedRefusals(t *testing.T) {
	bad := `{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p, namespace: shop}, spec: {endpointSelector: {}}}`
	dir := write(t, map[string]string{
		"asked/objects.yaml":   bad,
		"asked/expect.json":    `{"queries":[],"rejected":{"CiliumNetworkPolicy/shop/p":"no rule"}}`,
		"unasked/objects.yaml": bad,
		"unasked/expect.json":  `{"queries":[]}`,
		"missing/objects.yaml": objects,
		"missing/expect.json":  `{"queries":[],"rejected":{"NetworkPolicy/shop/p":"bad"}}`,
	})
	scenarios, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := Options{OnlySupported: true}.run(scenarios)
	if r.Passed != 1 || r.Failed != 2 {
		t.Errorf("got %s: %v", r.Summary(), r.Failures)
	}
}

func TestLoadRefusesWhatIsNoScenario(t *testing.T) {
	for name, path := range map[string]string{
		"empty folder":    t.TempDir(),
		"missing":         filepath.Join(t.TempDir(), "nothing"),
		"no archive":      filepath.Join(write(t, map[string]string{"a.zip": "x"}), "a.zip"),
		"broken archive":  filepath.Join(write(t, map[string]string{"a.tar.gz": "x"}), "a.tar.gz"),
		"without objects": write(t, map[string]string{"s/expect.json": "{}"}),
	} {
		if _, err := load(path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
