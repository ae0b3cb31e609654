package integration

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGrpcurl runs every command of docs/grpcurl.md, with the real grpcurl.
func TestGrpcurl(t *testing.T) {
	d := up(t, "it-grpcurl")
	d.weir(t, 0, "apply", "-f", filepath.Join("examples", "tutorial", "demo.yaml"))
	d.running(t, 4)
	text, err := os.ReadFile(filepath.Join(the.root, "examples", "tutorial", "policy-v1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d.policy(t, "rule1", string(text))

	d.want(t, "deploy/app2", "http://app1-service/public", served("/public")) // flows to observe

	tool := t.TempDir()
	build := exec.Command("go", "build", "-o", tool+"/", "github.com/fullstorydev/grpcurl/cmd/grpcurl")
	build.Dir, build.Env = filepath.Join(the.root, "tools"), append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build grpcurl: %v\n%s", err, out)
	}
	env := d.weir(t, 0, "demo", "env")
	commands := documented(t, "grpcurl ")
	if len(commands) < 15 {
		t.Fatalf("docs/grpcurl.md has %d commands, want at least 15", len(commands))
	}
	said := map[string]string{}
	for _, c := range commands {
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", env+"\n"+c)
		cmd.Dir, cmd.Env = the.root, append(os.Environ(), "PATH="+tool+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", c, err, out)
		}
		if len(bytes.TrimSpace(out)) == 0 {
			t.Errorf("%s: says nothing", c)
		}
		said[c] = string(out)
	}
	for method, want := range map[string]string{
		"Health/Check":                  "SERVING",
		"PolicyService/ListPolicies":    "rule1",
		"IdentityService/ListAddresses": "app2",
		"EnforcerService/ListEndpoints": "ENDPOINT_STATE_READY",
		"$WEIR_L7PROXY_N1 list":         "weir.l7proxy.v1.ProxyService",
	} {
		for c, out := range said {
			if strings.HasSuffix(c, method) && !strings.Contains(out, want) {
				t.Errorf("%s: lacks %q\n%s", c, want, out)
			}
		}
	}
}

// documented lists the commands of the page's shell blocks that begin so.
func documented(t *testing.T, begin string) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(the.root, "docs", "grpcurl.md"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	shell := false
	for s := bufio.NewScanner(bytes.NewReader(page)); s.Scan(); {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "```"):
			shell = line == "```sh"
		case shell && strings.HasPrefix(line, begin):
			out = append(out, line)
		}
	}
	return out
}
