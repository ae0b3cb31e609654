package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/netns"
	"weir.dev/weir/internal/tlsconf"
)

// unit is what the test needs of a systemd unit.
type unit struct {
	name    string
	env     []string // of Environment=
	command []string // of ExecStart=, before variables are replaced
	bounds  string   // of CapabilityBoundingSet=
}

// TestSystemdUnits runs the commands of deploy/systemd on a machine of their own
// (a network with one address, mounts, BPF file system), with the variables of
// weir.env and no more capabilities than each unit names, until all are ready.
func TestSystemdUnits(t *testing.T) {
	m := newUnitHost(t)
	var units []unit
	for _, name := range []string{"nats", "identity", "policy", "enforcer", "l7proxy"} {
		units = append(units, readUnit(t, "weir-"+name+".service"))
	}
	m.everyVariableIsUsed(t, units)
	for _, u := range units {
		m.start(t, u)
	}
	for _, sock := range []string{"weir-identity/http.sock", "weir-policy/http.sock", "weir/enforcer.http.sock", "weir/l7proxy.http.sock"} {
		m.ready(t, filepath.Join(m.dir, "run", sock))
	}
}

// unitHost is the machine on which the units run. Its /etc/weir, /run and
// /var/lib are folders
// below dir.
type unitHost struct {
	dir   string
	bin   string
	space *netns.Space
	vars  map[string]string // of weir.env
}

func newUnitHost(t *testing.T) *unitHost {
	t.Helper()
	// Unix sockets have short names.
	dir, err := os.MkdirTemp("/run", "weir-units-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	space, err := netns.Start(t.Context(), exe, os.Environ(), netns.Setup{Mount: true, BPFFS: "/sys/fs/bpf"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = space.Close() })
	m := &unitHost{dir: dir, bin: the.bin, space: space, vars: readEnv(t)}
	m.network(t)
	m.files(t)
	return m
}

func (m *unitHost) network(t *testing.T) {
	t.Helper()
	h, err := m.space.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}
	if err := h.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.0.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := h.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []netlink.Link{lo, link, peer} {
		if err := h.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *unitHost) files(t *testing.T) {
	t.Helper()
	for _, d := range []string{"etc/weir/objects", "etc/weir/policies", "run/weir-identity", "run/weir-policy", "run/weir", "var/lib/weir-nats"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	conf, err := os.ReadFile(filepath.Join(the.root, "deploy", "nats", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "etc/weir/nats.conf"), conf, 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := tlsconf.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for part, name := range map[string]tlsconf.Name{
		"nats":     {Role: tlsconf.NATS, Name: "nats"},
		"identity": {Role: tlsconf.Identity, Name: "identity-0"},
		"policy":   {Role: tlsconf.Policy, Name: "policy-0"},
		"node":     {Role: tlsconf.Node, Name: m.vars["WEIR_NODE"]},
	} {
		if err := ca.Issue(filepath.Join(m.dir, "etc/weir/tls", part), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", m.bin+"/nats-server", "github.com/nats-io/nats-server/v2")
	build.Dir, build.Env = filepath.Join(the.root, "internal"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build nats-server: %v\n%s", err, out)
	}
}

// here puts a path of the unit below the unitHost's folder.
func (m *unitHost) here(text string) string {
	return strings.NewReplacer("/etc/weir", m.dir+"/etc/weir", "/run/weir", m.dir+"/run/weir", "/var/lib/weir", m.dir+"/var/lib/weir").Replace(text)
}

// start runs a unit's command, bounded as the unit says, until the test ends.
func (m *unitHost) start(t *testing.T, u unit) {
	t.Helper()
	args := []string{"--bounding-set", bounding(u.bounds), "--"}
	args = append(args, filepath.Join(m.bin, filepath.Base(u.command[0])))
	for _, a := range u.command[1:] {
		args = append(args, m.here(os.Expand(a, func(v string) string { return m.vars[v] })))
	}
	cmd := exec.Command("/usr/bin/setpriv", args...)
	cmd.Env = os.Environ()
	for k, v := range m.vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	for _, e := range u.env {
		cmd.Env = append(cmd.Env, m.here(e))
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = time.Second
	if err := m.space.StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-done:
		case <-time.After(soon):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("%s: %s", u.name, log.String())
		}
	})
}

// bounding turns a unit's CapabilityBoundingSet into setpriv's words.
func bounding(set string) string {
	words := []string{"-all"}
	for _, c := range strings.Fields(set) {
		words = append(words, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	return strings.Join(words, ",")
}

// ready waits until /readyz on the socket says so.
func (m *unitHost) ready(t *testing.T, socket string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*soon)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := "no answer"
	for {
		r, err := c.Get("http://part/readyz?verbose")
		if err != nil {
			last = err.Error()
		} else {
			body, _ := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
			last = string(body)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not ready: %s", socket, last)
		case <-tick.C:
		}
	}
}

// everyVariableIsUsed: none of weir.env is for nobody, and none is missing there.
func (m *unitHost) everyVariableIsUsed(t *testing.T, units []unit) {
	t.Helper()
	conf, err := os.ReadFile(filepath.Join(the.root, "deploy", "nats", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	variable := regexp.MustCompile(`\$\{?(WEIR_[A-Z0-9_]+)`)
	texts := []string{string(conf)}
	own := map[string]bool{}
	for _, u := range units {
		texts = append(texts, strings.Join(u.command, " "))
		for _, e := range u.env {
			name, _, _ := strings.Cut(e, "=")
			own[name] = true
		}
	}
	for _, v := range variable.FindAllStringSubmatch(strings.Join(texts, "\n"), -1) {
		used[v[1]] = true
		if _, ok := m.vars[v[1]]; !ok && !own[v[1]] {
			t.Errorf("%s stands neither in weir.env nor in a unit", v[1])
		}
	}
	for name := range m.vars {
		if !used[name] {
			t.Errorf("weir.env: no unit uses %s", name)
		}
	}
}

func readEnv(t *testing.T) map[string]string {
	t.Helper()
	vars := map[string]string{}
	for line := range lines(t, "weir.env") {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("weir.env: %q is no NAME=VALUE", line)
		}
		vars[name] = value
	}
	return vars
}

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	u := unit{name: name}
	for line := range lines(t, name) {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "ExecStart":
			u.command = strings.Fields(value)
		case "Environment":
			u.env = append(u.env, value)
		case "CapabilityBoundingSet":
			u.bounds = value
		}
	}
	if len(u.command) == 0 {
		t.Fatalf("%s has no ExecStart", name)
	}
	return u
}

// lines yields the lines of a file of deploy/systemd that are neither empty nor
// comments.
func lines(t *testing.T, name string) func(func(string) bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(the.root, "deploy", "systemd", name))
	if err != nil {
		t.Fatal(fmt.Errorf("read a unit: %w", err))
	}
	return func(yield func(string) bool) {
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			line := strings.TrimSpace(s.Text())
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if !yield(line) {
				return
			}
		}
	}
}
