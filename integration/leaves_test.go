package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"weir.dev/weir/internal/netns"
)

// goneLimit is how long what a demo made may take to be gone: the kernel ends
// namespaces and frees programs in its own time.
const goneLimit = time.Minute

// machine is everything of the machine that a demo could leave something in.
type machine map[string]bool

// look takes stock of what is the machine's own: nothing of it may change.
func look(t *testing.T) machine {
	t.Helper()
	m := machine{}
	for _, dir := range []string{"/run/netns", at(leaver).dir, "/sys/fs/bpf", "/dev/shm"} {
		files(t, m, dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		m["mount "+strings.TrimSpace(line)] = true
	}
	network(t, m)
	return m
}

// living takes stock of all processes, their namespaces, and what is loaded
// into the kernel, whosever it is.
func living(t *testing.T) machine {
	t.Helper()
	m := machine{}
	for pid, start := range processes(t) {
		m["process "+pid+" since "+start] = true
		for _, ns := range namespaces(pid) {
			m[ns] = true
		}
	}
	loaded(t, m)
	return m
}

// belongings takes stock of what is the demo's: its processes, by the variable
// that it marks them with or by the namespaces they share with those, the
// namespaces, and what these processes hold or have pinned in the kernel.
func belongings(t *testing.T, d *demo) machine {
	t.Helper()
	own := map[string]bool{}
	for _, ns := range namespaces("self") {
		own[ns] = true
	}
	m := machine{}
	all := processes(t)
	mark := []byte(netns.Mark + "=" + d.dir)
	for pid := range all {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		if err != nil || !bytes.Contains(append(env, 0), append(mark, 0)) {
			continue
		}
		for _, ns := range namespaces(pid) {
			if !own[ns] {
				m[ns] = true
			}
		}
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for pid, start := range all {
		for _, ns := range namespaces(pid) {
			if m[ns] {
				// No cgroup is made: all are in the one that the test is in.
				if other, err := os.ReadFile("/proc/" + pid + "/cgroup"); err == nil && !bytes.Equal(other, cgroup) {
					t.Errorf("process %s is in another cgroup:\n%s", pid, other)
				}
				m["process "+pid+" since "+start] = true
				held(m, pid)
			}
		}
	}
	return m
}

// processes lists pid and start time of all that live. A zombie waits for its
// parent alone and holds nothing.
func processes(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // ended meanwhile
		}
		// "pid (name) state ppid … starttime …"
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 19 && fields[0] != "Z" && fields[0] != "X" {
			out[e.Name()] = fields[19]
		}
	}
	return out
}

// namespaces are those a process is in, and the network namespaces that are
// bound somewhere in its mounts.
func namespaces(pid string) []string {
	var out []string
	for _, kind := range []string{"net", "mnt", "uts"} {
		if ns, err := os.Readlink("/proc/" + pid + "/ns/" + kind); err == nil {
			out = append(out, "namespace "+ns)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(mounts)) {
		for _, f := range strings.Fields(line) {
			if strings.HasPrefix(f, "net:[") {
				out = append(out, "namespace "+f)
			}
		}
	}
	return out
}

// held notes the BPF objects that a process has open.
func held(m machine, pid string) {
	entries, err := os.ReadDir("/proc/" + pid + "/fdinfo")
	if err != nil {
		return
	}
	for _, e := range entries {
		text, err := os.ReadFile("/proc/" + pid + "/fdinfo/" + e.Name())
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			name, id, _ := strings.Cut(strings.TrimSpace(line), ":")
			if kind, ok := map[string]string{"prog_id": "program", "map_id": "map", "link_id": "link"}[name]; ok {
				m[kind+" "+strings.TrimSpace(id)] = true
			}
		}
	}
}

func files(t *testing.T, m machine, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile, or there is no such folder
		}
		if err == nil {
			m["file "+path] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// network notes the links, addresses and routes of the machine's own network.
func network(t *testing.T, m machine) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		m[fmt.Sprintf("interface %d %s", l.Attrs().Index, l.Attrs().Name)] = true
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		m["address "+a.IPNet.String()] = true
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		m["route "+r.String()] = true
	}
}

// loaded notes BPF programs, maps and links.
func loaded(t *testing.T, m machine) {
	t.Helper()
	programs, err := ids(ebpf.ProgramGetNextID)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range programs {
		m[fmt.Sprintf("program %d", id)] = true
	}
	loadedMaps, err := ids(ebpf.MapGetNextID)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range loadedMaps {
		m[fmt.Sprintf("map %d", id)] = true
	}
	it := link.Iterator{}
	defer it.Close()
	for it.Next() {
		m[fmt.Sprintf("link %d", it.ID)] = true
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
}

// ids walks the kernel's list to its end.
func ids[T ~uint32](next func(T) (T, error)) ([]T, error) {
	var out []T
	for id := T(0); ; {
		var err error
		if id, err = next(id); errors.Is(err, os.ErrNotExist) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
}

// wantGone waits until nothing that was the demo's lives, and the machine is as
// it was before.
func wantGone(t *testing.T, before, its machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), goneLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var wrong []string
		all := living(t)
		for k := range its {
			if all[k] {
				wrong = append(wrong, "left: "+k)
			}
		}
		now := look(t)
		for k := range now {
			if !before[k] {
				wrong = append(wrong, "new: "+k)
			}
		}
		for k := range before {
			if !now[k] {
				wrong = append(wrong, "lost: "+k)
			}
		}
		if len(wrong) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			slices.Sort(wrong)
			t.Fatal(strings.Join(wrong, "\n"))
		}
	}
}

// use gives the demo pods, a policy and requests of every outcome, so that
// there is something to leave.
func (d *demo) use(t *testing.T) {
	t.Helper()
	d.tutorial(t)
	d.policy(t, "rule1", tutorialPolicy(t))
	d.want(t, "deploy/app2", "http://app1-service/public", served("/public"))
	d.want(t, "deploy/app2", "http://app1-service/private", denied())
	d.want(t, "deploy/app3", "http://app1-service/public", timedOut())
}

// leaver is the demo's name in this file.
const leaver = "it-leaves"

// TestLeavesNothing compares the machine before a demo and after it.
func TestLeavesNothing(t *testing.T) {
	t.Run("after down", func(t *testing.T) {
		before := look(t)
		d := up(t, leaver)
		d.use(t)
		its := belongings(t, d)
		wantSeen(t, its)
		d.weir(t, 0, "demo", "down", "--name", d.name)
		wantGone(t, before, its)
	})
	t.Run("after down without a policy or a pod", func(t *testing.T) {
		before := look(t)
		d := up(t, leaver)
		its := belongings(t, d)
		d.weir(t, 0, "demo", "down", "--name", d.name)
		wantGone(t, before, its)
	})
	t.Run("after Ctrl-C", func(t *testing.T) {
		before := look(t)
		d := at(leaver)
		daemon := d.foreground(t)
		d.use(t)
		its := belongings(t, d)
		if err := daemon.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := daemon.Wait(); err != nil {
			t.Errorf("weir demo up --foreground: %v", err)
		}
		wantGone(t, before, its)
	})
	t.Run("after SIGKILL, up and down", func(t *testing.T) {
		before := look(t)
		d := at(leaver)
		daemon := d.foreground(t)
		d.use(t)
		its := belongings(t, d)
		if err := daemon.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = daemon.Wait() // killed
		d.weir(t, 0, "demo", "up", "--name", d.name)
		clear(d.last) // a new log begins
		d.use(t)
		maps.Copy(its, belongings(t, d))
		d.weir(t, 0, "demo", "down", "--name", d.name)
		wantGone(t, before, its)
	})
	t.Run("after SIGKILL and down", func(t *testing.T) {
		before := look(t)
		d := at(leaver)
		daemon := d.foreground(t)
		its := belongings(t, d)
		if err := daemon.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = daemon.Wait() // killed
		d.weir(t, 0, "demo", "down", "--name", d.name)
		wantGone(t, before, its)
	})
}

// foreground starts weir demo up --foreground and returns when it is up.
func (d *demo) foreground(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := d.command(context.WithoutCancel(t.Context()), "demo", "up", "--foreground", "--name", d.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.weir(t, 0, "demo", "down", "--name", d.name) })
	said := bufio.NewScanner(out)
	for said.Scan() {
		if strings.Contains(said.Text(), "is up") {
			return cmd
		}
	}
	t.Fatalf("the demo did not come up: %v", cmd.Wait())
	return nil
}

// wantSeen makes sure that the stock-taking sees what a demo makes.
func wantSeen(t *testing.T, its machine) {
	t.Helper()
	count := map[string]int{}
	for k := range its {
		kind, _, _ := strings.Cut(k, " ")
		if rest, ok := strings.CutPrefix(k, "namespace "); ok {
			kind, _, _ = strings.Cut(rest, ":")
		}
		count[kind]++
	}
	for kind, least := range map[string]int{
		"process": 11 + 4 + 9,    // parts, containers, holders
		"net":     2 + 3 + 4 + 6, // fabric and control plane, nodes, pods, weir-in and weir-out
		"mnt":     3 + 4,
		"uts":     3 + 4,
		"program": 3, "map": 3, "link": 3,
	} {
		if count[kind] < least {
			t.Errorf("while a demo is up, %d of kind %q are seen, want at least %d", count[kind], kind, least)
		}
	}
}
