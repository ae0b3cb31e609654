package kube

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestLogsEndWithTheLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, tc := range []struct {
		text string
		tail int
		want string
	}{
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\n\n\n", 2, "\n\n"},
		{"a\n", 9, "a\n"},
		{"", 3, ""},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := logs(t.Context(), &out, path, tc.tail, false); err != nil || out.String() != tc.want {
			t.Errorf("%q, %d lines: %q, %v; want %q", tc.text, tc.tail, out.String(), err, tc.want)
		}
	}
}

func TestContainersAreNamed(t *testing.T) {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}, {Name: "sidecar"}}}}
	for name, want := range map[string]string{"": "app", "app": "app", "sidecar": "sidecar"} {
		if got, err := containerOf(p, name); err != nil || got != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	if _, err := containerOf(p, "nobody"); err == nil || !strings.Contains(err.Error(), "app, sidecar") {
		t.Errorf("a container that is not there: %v", err)
	}
}

func TestExecSaysHowItIsCalled(t *testing.T) {
	for _, args := range [][]string{{"deploy/app2"}, {"deploy/app2", "curl"}, {"deploy/app2", "curl", "-q"}, {"--", "curl"}, {}} {
		cmd := execCommand()
		cmd.Flags().String("demo", "nobody", "")
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(args)
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), errOneCommand.Error()) {
			t.Errorf("%q: %v", args, err)
		}
	}
}
