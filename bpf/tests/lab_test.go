package tests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"weir.dev/weir/bpf/datapath"
)

// Return values of tcx programs.
const (
	next     = -1
	drop     = 2
	redirect = 7
)

// skbContext is struct __sk_buff as a test run takes it.
type skbContext struct {
	_              [2]uint32
	Mark           uint32
	_              [6]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [37]uint32
}

// lab runs programs on frames that were never on a wire. It has a namespace
// with interfaces, since a run is on one that exists.
type lab struct {
	*kernel
	ns  *namespace
	ifs []uint32
}

func newLab(t testing.TB, sizes datapath.Sizes) *lab {
	t.Helper()
	l := &lab{kernel: load(t, sizes), ns: newNamespace(t)}
	for i := range 3 {
		a, b := fmt.Sprintf("lab%da", i), fmt.Sprintf("lab%db", i)
		l.ns.veth(t, a, l.ns, b)
		for _, name := range []string{a, b} {
			l.ifs = append(l.ifs, uint32(l.ns.link(t, name).Attrs().Index))
		}
	}
	l.put(datapath.MapConfig, uint32(0), datapath.WeirConfig{
		InIfindex: l.ifs[4], OutIfindex: l.ifs[5], InNsid: -1, OutNsid: -1,
	})
	return l
}

// pickUp says that there are connections from before.
func (k *kernel) pickUp() {
	k.Helper()
	var c datapath.WeirConfig
	if err := k.Maps[datapath.MapConfig].Lookup(uint32(0), &c); err != nil {
		k.Fatal(err)
	}
	c.PickUpUntil = ^uint32(0)
	k.put(datapath.MapConfig, uint32(0), c)
}

// in is the lab as a subtest uses it.
func (l *lab) in(t testing.TB) *lab {
	k := *l.kernel
	k.TB = t
	return &lab{kernel: &k, ns: l.ns, ifs: l.ifs}
}

// result is what a program made of a frame.
type result struct {
	ret  int32
	out  []byte
	mark uint32
}

// run is one packet at a hook. from is the interface it came in by, 0 if the
// node made it.
func (l *lab) run(program string, ifindex, from uint32, data []byte) result {
	l.Helper()
	return l.runMarked(program, ifindex, from, 0, data)
}

func (l *lab) runMarked(program string, ifindex, from, mark uint32, data []byte) result {
	l.Helper()
	in := skbContext{IngressIfindex: from, Ifindex: ifindex, Mark: mark}.encode(l)
	out := make([]byte, len(in))
	opts := ebpf.RunOptions{
		Data: data, DataOut: make([]byte, len(data)+64),
		Context: in, ContextOut: out,
	}
	var ret uint32
	err := l.ns.do(func() (err error) {
		ret, err = l.Programs[program].Run(&opts)
		return err
	})
	if err != nil {
		l.Fatalf("run %s: %v", program, err)
	}
	return result{int32(ret), opts.DataOut, binary.NativeEndian.Uint32(out[8:])}
}

// fromPod and toPod are a packet at a pod's interface; the latter came by
// another interface.
func (l *lab) fromPod(i int, f frame) result {
	l.Helper()
	return l.run(datapath.FromPod, l.ifs[i], l.ifs[i], f.bytes())
}

func (l *lab) toPod(i int, f frame) result {
	l.Helper()
	return l.run(datapath.ToPod, l.ifs[i], l.ifs[3], f.bytes())
}

// want checks a return value, and that a drop told its reason once, and only that.
func (l *lab) want(what string, r result, ret int32, reason datapath.Reason) {
	l.Helper()
	if r.ret != ret {
		l.Errorf("%s: returned %d, want %d", what, r.ret, ret)
	}
	drops := l.drops()
	if ret != drop {
		if len(drops) != 0 {
			l.Errorf("%s: dropped as %s", what, datapath.Reason(drops[0].Reason))
		}
		return
	}
	if len(drops) != 1 {
		l.Errorf("%s: %d drop events, want one", what, len(drops))
		return
	}
	if got := datapath.Reason(drops[0].Reason); got != reason {
		l.Errorf("%s: dropped as %s, want %s", what, got, reason)
	}
}

// ct is the conntrack entry of a frame's flow.
func (l *lab) ct(f frame) (datapath.WeirCt, bool) {
	l.Helper()
	name := datapath.MapCtAny
	if f.protocol == tcp {
		name = datapath.MapCtTCP
	}
	src, dst := netip.AddrPortFrom(f.src, f.sport), netip.AddrPortFrom(f.dst, f.dport)
	if f.protocol == icmp || f.protocol == icmpv6 {
		src, dst = netip.AddrPortFrom(f.src, f.icmpID), netip.AddrPortFrom(f.dst, f.icmpID)
	}
	key, _ := datapath.CtKey(src, dst, f.protocol, f.icmpType)
	var v datapath.WeirCt
	err := l.Maps[name].Lookup(key, &v)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		l.Fatalf("read %s: %v", name, err)
	}
	return v, err == nil
}

// encode is the context of a run as the kernel takes it.
func (c skbContext) encode(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// timed runs a program n times on a frame and returns the time of one run.
func (l *lab) timed(t testing.TB, p *ebpf.Program, ifindex uint32, data []byte, n uint32) time.Duration {
	t.Helper()
	opts := ebpf.RunOptions{Data: data, Context: skbContext{Ifindex: ifindex}.encode(t), Repeat: n}
	var took time.Duration
	err := l.ns.do(func() error {
		start := time.Now()
		_, err := p.Run(&opts)
		took = time.Since(start)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return took / time.Duration(n)
}
