//go:build faults

package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir.dev/weir/internal/netns"
)

// underLoad is a demo with all the traffic of steady.
type underLoad struct {
	*demo
	client, stranger *load
	allowed, denied  []traffic
	windows          []window
}

func startLoad(t *testing.T, name string) *underLoad {
	t.Helper()
	u := &underLoad{demo: up(t, name)}
	u.apply(t, loadPods)
	pods := u.running(t, 4)
	u.policy(t, "server", loadPolicy)
	u.allowed, u.denied = steady(pods)
	u.client = u.load(t, "client", u.allowed)
	u.stranger = u.load(t, "stranger", u.denied)
	u.all(t)
	return u
}

// all waits until every stream has gone on.
func (u *underLoad) all(t *testing.T) {
	t.Helper()
	u.client.goesOn(t, u.demo, u.allowed, 5)
	u.stranger.goesOn(t, u.demo, u.denied, 2)
}

// end judges every answer of the whole time.
func (u *underLoad) end(t *testing.T) {
	t.Helper()
	u.client.stop(t)
	u.stranger.stop(t)
	u.client.judge(t, u.windows)
	u.stranger.judge(t, nil)
}

// part does something to a part.
func (u *underLoad) part(t *testing.T, action string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		u.weir(t, 0, "demo", action, p)
	}
}

// webAt are the streams whose HTTP is judged on that node; what they get when
// both enforcer and proxy of the node are gone is more than without the proxy.
func webAt(node string) func(string) bool {
	at := map[string]string{"n1": "near", "n2": "far"}[node]
	return func(name string) bool {
		return strings.HasPrefix(name, "web") && strings.Contains(name, "-"+at+"-")
	}
}

// broken opens a window for the HTTP of a node, which the caller closes.
func (u *underLoad) broken(why, node string, got ...string) (end func()) {
	u.windows = append(u.windows, window{why: why, from: time.Now(), until: time.Now().Add(time.Hour), stream: webAt(node), got: got})
	i := len(u.windows) - 1
	return func() { u.windows[i].until = time.Now() }
}

// faults are the parts that are killed together, with the node whose HTTP that
// breaks.
var faults = []struct {
	parts []string
	node  string
}{
	{parts: []string{"nats"}},
	{parts: []string{"identity-0"}},
	{parts: []string{"identity-1"}},
	{parts: []string{"policy-0"}},
	{parts: []string{"policy-1"}},
	{parts: []string{"enforcer-n1"}},
	{parts: []string{"enforcer-n2"}},
	{parts: []string{"l7proxy-n1"}, node: "n1"},
	{parts: []string{"l7proxy-n2"}, node: "n2"},
	{parts: []string{"nats", "identity-0"}},
	{parts: []string{"nats", "policy-0"}},
	{parts: []string{"nats", "enforcer-n1"}},
	{parts: []string{"identity-0", "identity-1"}},
	{parts: []string{"policy-0", "policy-1"}},
	{parts: []string{"identity-0", "policy-1"}},
	{parts: []string{"identity-1", "enforcer-n2"}},
	{parts: []string{"policy-0", "enforcer-n1"}},
	{parts: []string{"enforcer-n1", "enforcer-n2"}},
	{parts: []string{"policy-1", "l7proxy-n1"}, node: "n1"},
	{parts: []string{"enforcer-n1", "l7proxy-n2"}, node: "n2"},
}

// TestKilledUnderLoad kills each part, and pairs of parts, under load: nothing
// forbidden gets through, no allowed connection breaks, and HTTP breaks only
// where the proxy was killed, with 503 until it is back.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-killed")
	for _, f := range faults {
		name := strings.Join(f.parts, " and ")
		begun := time.Now()
		end := func() {}
		if f.node != "" {
			end = u.broken(name, f.node, "503", "reset", "closed")
		}
		u.part(t, "kill", f.parts...)
		hurt := func(s traffic) bool { return f.node != "" && webAt(f.node)(s.name) }
		for _, s := range slices.DeleteFunc(slices.Clone(u.allowed), func(s traffic) bool { return !hurt(s) }) {
			from, _ := u.client.now()
			u.await(t, s.name+" gets 503", func() bool {
				now, _ := u.client.now()
				return now[s.name]["503"] > from[s.name]["503"]
			})
		}
		u.client.goesOn(t, u.demo, slices.DeleteFunc(slices.Clone(u.allowed), hurt), 5)
		u.stranger.goesOn(t, u.demo, u.denied, 1)
		u.part(t, "start", f.parts...)
		u.all(t)
		end()
		t.Logf("%s: killed and back after %v", name, time.Since(begun))
	}
	u.end(t)
	for _, e := range u.client.events {
		if e.Got == "503" && e.Took > 3*time.Second {
			t.Errorf("%s was answered 503 after %v, want at once", e.Stream, e.Took)
		}
	}
}

// TestEnforcerAndProxyGone kills both parts of a node: what they judge together
// fails closed, all else flows.
func TestEnforcerAndProxyGone(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-closed")
	end := u.broken("enforcer and proxy", "n1", "503", "reset", "closed", "timeout", "refused")
	u.part(t, "kill", "enforcer-n1", "l7proxy-n1")
	closed, _ := u.client.now()
	u.await(t, "HTTP of n1 is not answered any more", func() bool {
		now, _ := u.client.now()
		quiet := true
		for _, s := range u.allowed {
			quiet = quiet && (!webAt("n1")(s.name) || now[s.name]["200"] == closed[s.name]["200"])
		}
		closed = now
		return quiet
	})
	u.want(t, "client", url(servers(u.running(t, 4))["near-4"], 80, "/public"), timedOut())
	rest := slices.DeleteFunc(slices.Clone(u.allowed), func(s traffic) bool { return webAt("n1")(s.name) })
	u.client.goesOn(t, u.demo, rest, 10)
	u.stranger.goesOn(t, u.demo, u.denied, 2)
	u.part(t, "start", "enforcer-n1", "l7proxy-n1")
	u.all(t)
	end()
	u.end(t)
}

// pid is a part's process; 0 if there is none.
func (d *demo) pid(t *testing.T, part string) int {
	t.Helper()
	var list []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	}
	if err := json.Unmarshal([]byte(d.weir(t, 0, "demo", "ps", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.Name == part {
			return p.PID
		}
	}
	t.Fatalf("no part %s in %v", part, list)
	return 0
}

// stopped pauses a part's processes until the returned function is called.
func (d *demo) stopped(t *testing.T, part string) (resume func()) {
	t.Helper()
	pids := []int{d.pid(t, part)}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[0]))
	if err != nil || len(files) == 0 {
		t.Fatalf("children of %s: %v, %v", part, files, err)
	}
	for _, file := range files {
		children, err := os.ReadFile(file)
		if err != nil {
			continue // of a thread that has ended
		}
		for _, c := range strings.Fields(string(children)) {
			pid, err := strconv.Atoi(c)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	if strings.HasPrefix(part, "l7proxy") && len(pids) < 2 {
		t.Fatalf("%s has no worker", part)
	}
	signal := func(s syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil {
				t.Errorf("signal %s: %v", part, err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	return func() { signal(syscall.SIGCONT) }
}

// TestPausedUnderLoad pauses parts: nobody notices but HTTP, which waits for a
// paused proxy.
func TestPausedUnderLoad(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-paused")
	for _, part := range []string{"nats", "identity-0", "identity-1", "policy-0", "policy-1", "enforcer-n1", "l7proxy-n1"} {
		resume := u.stopped(t, part)
		rest := u.allowed
		if part == "l7proxy-n1" {
			rest = slices.DeleteFunc(slices.Clone(rest), func(s traffic) bool { return webAt("n1")(s.name) })
		}
		// Long enough for time-outs of whoever waits for the part.
		u.stranger.goesOn(t, u.demo, u.denied, 6)
		u.client.goesOn(t, u.demo, rest, 20)
		resume()
		u.all(t)
	}
	u.end(t)
}

// TestAllKilledAtOnce kills every part of every node and starts them in any
// order: all come back, nothing was ever open, and no plain connection breaks.
func TestAllKilledAtOnce(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-all")
	parts := []string{"nats", "identity-0", "identity-1", "policy-0", "policy-1"}
	for _, n := range []string{"n1", "n2", "n3"} {
		parts = append(parts, "enforcer-"+n, "l7proxy-"+n)
	}
	each := func(action string) {
		var g sync.WaitGroup
		for _, p := range parts {
			g.Go(func() {
				if out, code := u.try(t, "", "demo", action, p); code != 0 {
					t.Errorf("%s %s: %s", action, p, out)
				}
			})
		}
		g.Wait()
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, seed))
	for round := range 3 {
		ends := []func(){}
		for _, n := range []string{"n1", "n2"} {
			ends = append(ends, u.broken(fmt.Sprintf("all, round %d", round), n, "503", "reset", "closed", "timeout", "refused"))
		}
		each("kill")
		u.stranger.goesOn(t, u.demo, u.denied, 2)
		u.client.goesOn(t, u.demo, only(u.allowed, "plain"), 5)
		random.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		t.Logf("round %d: seed %d, order %v", round, seed, parts)
		each("start")
		u.all(t)
		for _, end := range ends {
			end()
		}
	}
	u.end(t)
}

// TestPlannedRestarts restarts proxy and enforcer under kept-alive, idle and new
// connections: no request fails and no connection breaks.
func TestPlannedRestarts(t *testing.T) {
	t.Parallel()
	u := startLoad(t, "it-restart")
	var many []traffic
	for at, ip := range servers(u.running(t, 4)) {
		many = append(many,
			traffic{name: "many-" + at, kind: "alive", conns: 60, pace: time.Second, url: url(ip, 80, "/public"), want: "200"},
			traffic{name: "idle-" + at, kind: "hold", conns: 20, url: url(ip, 80, "/public"), want: "200"},
		)
	}
	l := u.load(t, "client", many)
	u.await(t, "idle connections are there", func() bool {
		now, _ := l.now()
		for _, s := range only(many, "idle-") {
			if now[s.name]["200"] != s.conns {
				return false
			}
		}
		return true
	})
	for _, part := range []string{"l7proxy-n1", "enforcer-n1", "l7proxy-n2", "l7proxy-n1", "enforcer-n2", "policy-0", "identity-0"} {
		begun := time.Now()
		u.part(t, "restart", part)
		u.all(t)
		l.goesOn(t, u.demo, only(many, "many-"), 120) // each connection twice
		t.Logf("%s: %v", part, time.Since(begun))
	}
	t.Run("beside", func(t *testing.T) {
		next := u.beside(t, "l7proxy-n1")
		u.all(t)
		l.goesOn(t, u.demo, only(many, "many-"), 120)
		u.part(t, "start", "l7proxy-n1") // beside that one
		if err := next.Wait(); err != nil {
			t.Errorf("the proxy that was replaced: %v", err)
		}
		u.all(t)
		l.goesOn(t, u.demo, only(many, "many-"), 120)
	})
	l.stop(t)
	l.judge(t, nil)
	u.end(t)
}

// beside starts a part a second time, and waits until the first has ended for it.
func (u *underLoad) beside(t *testing.T, part string) *exec.Cmd {
	t.Helper()
	pid := u.pid(t, part)
	read := func(name string) []string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	}
	cmd := &exec.Cmd{Path: filepath.Join(the.bin, "weir-l7proxy"), Args: read("cmdline"), Env: read("environ")}
	if err := netns.Of(pid).StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	u.await(t, part+" ends for the other", func() bool { return u.pid(t, part) == 0 })
	return cmd
}
