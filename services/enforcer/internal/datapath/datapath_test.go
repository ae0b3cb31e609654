package datapath

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/nodetest"
	"weir.dev/weir/services/enforcer/internal/plan"
)

var small = bpf.Sizes{
	Peers: 1024, Ranges: 2048, Backends: 512, Endpoints: 64, Addresses: 4096, Prefixes: 1024,
	Cells: 4096, Services: 1024, BackendSets: 256, CtTCP: 4096, CtAny: 4096, CtQuota: 1024, RingBytes: 1 << 16,
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t *testing.T, n *nodetest.Node) *Datapath {
	t.Helper()
	d, err := Open(Config{BPFFS: n.BPFFS, Sizes: small}, discard())
	if err != nil {
		t.Fatalf("open: %+v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// reopen lets go of everything, as the death of the process does, and adopts.
func reopen(t *testing.T, n *nodetest.Node, d *Datapath) *Datapath {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	return open(t, n)
}

func example() plan.State {
	a := netip.MustParseAddr
	return plan.State{
		Endpoints: map[uint32]plan.Endpoint{
			77: {ID: 1, Egress: 2, Ingress: 3, PodMAC: [6]byte{2, 1}, HostMAC: [6]byte{2, 2}, Addrs: []netip.Addr{a("10.244.1.2"), a("fd00::2")}},
		},
		Addresses: map[netip.Addr]plan.PeerRef{a("10.244.1.3"): {Peer: 3}, a("fd00::3"): {Peer: 3}, a("10.0.0.1"): {Peer: 4, Flags: plan.FlagHost}},
		Prefixes: map[netip.Prefix]plan.PeerRef{
			netip.MustParsePrefix("0.0.0.0/0"): {Peer: 1}, netip.MustParsePrefix("::/0"): {Peer: 1},
			netip.MustParsePrefix("10.244.0.0/16"): {Peer: 2, Flags: plan.FlagCluster},
		},
		Classes: map[plan.Peer]plan.Class{1: 1, 3: 2, 4: 3},
		Cells: map[plan.CellKey]plan.PortMap{
			{Row: 2, Class: plan.DefaultClass}: {{Start: 0, Verdict: rule.Allowed}},
			{Row: 3, Class: plan.DefaultClass}: {{Start: 0, Verdict: rule.Denied}},
			{Row: 3, Class: 2}:                 {{Start: 0}, {Start: 6<<16 | 80, Verdict: 2}, {Start: 6<<16 | 81}},
		},
		Services: map[plan.ServiceKey][]plan.Backend{{Addr: a("10.96.0.1"), Protocol: 6, Port: 80}: {{Peer: 3, Port: 8080}, {Peer: 4, Port: 80}}},
		Pairs:    map[plan.RuleSetPair]rule.Verdict{{A: 2, B: 3}: 4},
	}
}

var stateOptions = []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func apply(t *testing.T, p *plan.Planner, s plan.State) plan.Result {
	t.Helper()
	res, err := p.Apply(t.Context(), s)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return res
}

func TestStateIsReadBackAsWritten(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	want := example()
	apply(t, plan.NewPlanner(d.Limits(), d), want)

	d = reopen(t, n, d)
	p := plan.NewPlanner(d.Limits(), d)
	if err := p.Adopt(t.Context()); err != nil {
		t.Fatalf("adopt: %v", err)
	}
	if diff := cmp.Diff(want, p.Realized(), stateOptions...); diff != "" {
		t.Errorf("realized state (-want +got):\n%s", diff)
	}
	if res := apply(t, p, want); res.Writes != 0 || !res.Moved {
		t.Errorf("the same state after adoption: %+v, want no write, and the word moved", res)
	}
	if res := apply(t, p, want); res.Writes != 0 || res.Moved {
		t.Errorf("the same state again: %+v, want no write", res)
	}
}

func TestSecondEnforcerIsLockedOut(t *testing.T) {
	n := nodetest.New(t)
	open(t, n)
	_, err := Open(Config{BPFFS: n.BPFFS, Sizes: small}, discard())
	if !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v, want %v", err, ErrLocked)
	}
}

func TestPinsAreForRootAlone(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	for _, dir := range []string{filepath.Dir(d.dir), d.dir, d.linkDir()} {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, want 0700", dir, st.Mode())
		}
	}
}

func TestNoBPFFSIsRefused(t *testing.T) {
	if _, err := Open(Config{BPFFS: t.TempDir()}, discard()); err == nil {
		t.Error("a directory that is no BPF file system is taken for one")
	}
}

func TestWordIsNeverReused(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	if d.Word() != firstWord {
		t.Fatalf("word of a fresh node is %d, want %d", d.Word(), firstWord)
	}
	var told []uint64
	d.Mirror(func(w uint64) { told = append(told, w) })
	if err := d.Flip(255); err != nil {
		t.Fatal(err)
	}
	if err := d.Flip(7); err == nil {
		t.Error("the word went back")
	}
	if diff := cmp.Diff([]uint64{firstWord, 255}, told); diff != "" {
		t.Errorf("mirrored words (-want +got):\n%s", diff)
	}
	d = reopen(t, n, d)
	if d.Word() != 255 {
		t.Errorf("word after a restart is %d, want 255", d.Word())
	}
	var inMap uint64
	if err := d.Map(bpf.MapWord).Lookup(uint32(0), &inMap); err != nil || inMap != 255 {
		t.Errorf("word in the map is %d (%v), want 255", inMap, err)
	}
}

func TestMapsWithoutTheirWordAreMadeAnew(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	apply(t, plan.NewPlanner(d.Limits(), d), example())
	if err := os.Remove(d.pin(bpf.MapWord)); err != nil {
		t.Fatal(err)
	}
	d = reopen(t, n, d)
	im, err := d.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plan.NewImage(firstWord), im, stateOptions...); diff != "" {
		t.Errorf("maps after the word's pin was lost (-want +got):\n%s", diff)
	}
}

func TestLinksAreFirstLastAndOutliveTheProcess(t *testing.T) {
	n := nodetest.New(t)
	pod := n.Pod(t, "10.244.1.2")
	d := open(t, n)
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		other, err := link.AttachTCX(link.TCXOptions{Interface: int(pod.Ifindex), Program: passAll(t), Attach: at})
		if err != nil {
			t.Fatalf("attach another program: %v", err)
		}
		t.Cleanup(func() { _ = other.Close() })
	}
	for range 2 {
		if err := d.Attach(pod.Ifindex); err != nil {
			t.Fatalf("attach: %v", err)
		}
	}
	if err := d.Attached(pod.Ifindex); err != nil {
		t.Errorf("attached: %v", err)
	}
	d = reopen(t, n, d)
	if err := d.Attached(pod.Ifindex); err != nil {
		t.Errorf("after a restart the new programs are not attached: %v", err)
	}
	if err := d.Detach(pod.Ifindex, 1); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := d.Attached(pod.Ifindex); err == nil {
		t.Error("still attached after Detach")
	}
}

func TestLinksOfInterfacesThatAreGoneAreForgotten(t *testing.T) {
	n := nodetest.New(t)
	pod := n.Pod(t, "10.244.1.2")
	d := open(t, n)
	if err := d.Attach(pod.Ifindex); err != nil {
		t.Fatal(err)
	}
	pod.Remove(t)
	d = reopen(t, n, d)
	if err := d.Detach(pod.Ifindex, 1); err != nil {
		t.Errorf("detach: %v", err)
	}
	entries, err := os.ReadDir(d.linkDir())
	if err != nil || len(entries) != 0 {
		t.Errorf("pins of links that are left: %v, %v", entries, err)
	}
}

func TestPinnedMapsKeepTheirSize(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	want := d.Limits()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(Config{BPFFS: n.BPFFS, Sizes: bpf.Sizes{Peers: 2048, Cells: 64}}, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if diff := cmp.Diff(want, d.Limits()); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
}

// TestPinsOfAnotherLayoutAreRefused: they are not overwritten, and what to do is
// said.
func TestPinsOfAnotherLayoutAreRefused(t *testing.T) {
	n := nodetest.New(t)
	d := open(t, n)
	if err := os.Remove(d.pin(bpf.MapCells)); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(d.pin(bpf.MapCells)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{BPFFS: n.BPFFS, Sizes: small}, discard()); err == nil || !strings.Contains(err.Error(), d.dir) {
		t.Errorf("open: %v, want an error that names %s", err, d.dir)
	}
}

func TestGraceByMapInMap(t *testing.T) {
	wait, err := newMapGrace()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
}

func passAll(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatalf("load a program: %v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}
