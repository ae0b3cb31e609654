package judgement

import (
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

func newMap(t *testing.T) (*ebpf.Map, *os.File) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(datapath.WeirCtKey{})),
		ValueSize: uint32(unsafe.Sizeof(datapath.WeirCt{})), MaxEntries: 16,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m, os.NewFile(uintptr(fd), "ct")
}

func newWord(t *testing.T, w uint64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("word", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "word")
	b := make([]byte, os.Getpagesize())
	*(*uint64)(unsafe.Pointer(&b[0])) = w
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

func flow(d proxy.Direction, client, server string) proxy.Flow {
	return proxy.Flow{Direction: d, Client: netip.MustParseAddrPort(client), Server: netip.MustParseAddrPort(server)}
}

func TestKeyIsTheDatapaths(t *testing.T) {
	for _, f := range []proxy.Flow{
		flow(proxy.Ingress, "10.0.0.9:40000", "10.0.0.1:80"), flow(proxy.Ingress, "10.0.0.1:80", "10.0.0.9:40000"),
	} {
		k := key(f)
		b := (*[40]byte)(unsafe.Pointer(&k))
		want := [40]byte{
			10: 0xff, 11: 0xff, 12: 10, 15: 1, 26: 0xff, 27: 0xff, 28: 10, 31: 9,
			32: 0, 33: 80, 34: 40000 >> 8, 35: 40000 & 0xff, 36: 6,
		}
		if *b != want {
			t.Errorf("key of %+v is % x, want % x", f, *b, want)
		}
	}
	// Of one address the lesser port stands first, as a number.
	if k := key(flow(proxy.Ingress, "[::1]:512", "[::1]:3")); k.Port != [2]uint16{wire(3), wire(512)} {
		t.Errorf("ports %x", k.Port)
	}
}

func TestRuleSet(t *testing.T) {
	var v View
	in, out := flow(proxy.Ingress, "10.0.0.9:4", "10.0.0.1:80"), flow(proxy.Egress, "10.0.0.9:4", "10.0.0.1:80")
	if _, _, ok := v.RuleSet(in); ok || v.Word() != 0 {
		t.Error("the zero view knows something")
	}
	m, ct := newMap(t)
	if err := v.Set(ct, newWord(t, 44)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got := v.Word(); got != 44 {
		t.Errorf("word %d, want 44", got)
	}
	if _, _, ok := v.RuleSet(in); ok {
		t.Error("a connection without an entry is judged")
	}
	var entry datapath.WeirCt
	put := func() {
		t.Helper()
		if err := m.Put(key(in), entry); err != nil {
			t.Fatal(err)
		}
	}
	entry.Slot[1].Word, entry.Slot[1].Ifindex, entry.Slot[1].Verdict = 42, 7, 5
	put()
	if n, w, ok := v.RuleSet(in); n != 5 || w != 42 || !ok {
		t.Errorf("ingress: %d, %d, %v, want 5 under 42", n, w, ok)
	}
	if _, _, ok := v.RuleSet(out); ok {
		t.Error("the ingress slot judges egress")
	}
	entry.Slot[0].Word, entry.Slot[0].Ifindex, entry.Slot[0].Verdict = 40, 8, 1
	put()
	if n, w, ok := v.RuleSet(out); n != 1 || w != 40 || !ok {
		t.Errorf("egress: %d, %d, %v, want 1 under 40", n, w, ok)
	}
	entry.Flags = datapath.CTDenied
	put()
	if _, _, ok := v.RuleSet(in); ok {
		t.Error("an entry that was denied since judges")
	}
	entry.Flags, entry.Slot[1].Verdict = 0, 0
	put()
	if _, _, ok := v.RuleSet(in); ok {
		t.Error("a slot that denies judges")
	}
	entry.Slot[1].Verdict, entry.Busy = 5, 1
	put()
	if _, _, ok := v.RuleSet(in); ok {
		t.Error("a slot that is being written judges")
	}
	_, ct = newMap(t)
	if err := v.Set(ct, newWord(t, 46)); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := v.RuleSet(out); ok || v.Word() != 46 {
		t.Error("the view of another enforcer shows the first's entries")
	}
}
