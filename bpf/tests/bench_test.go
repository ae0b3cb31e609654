package tests

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"weir.dev/weir/bpf/datapath"
)

// BenchmarkPacket measures programs under test run; empty is the floor, what the
// test run itself takes.
func BenchmarkPacket(b *testing.B) {
	l := newPods(b)
	f := aToB(80)
	l.established(f)
	six := f
	six.src, six.dst = a6, b6
	l.established(six)
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	from, to := l.Programs[datapath.FromPod], l.Programs[datapath.ToPod]
	l.bench(b, "empty", empty, 0, f.with(ack))
	l.bench(b, "established from pod", from, 0, f.with(ack))
	l.bench(b, "established to pod", to, 1, f.with(ack))
	l.bench(b, "established IPv6", from, 0, six.with(ack))
	l.bench(b, "judged anew", from, 0, f)
	l.bench(b, "dropped", to, 1, aToB(22))
}

func (l *lab) bench(b *testing.B, name string, p *ebpf.Program, i int, f frame) {
	b.Run(name, func(b *testing.B) {
		best := time.Hour // others disturb only in one way
		for b.Loop() {
			best = min(best, l.timed(b, p, l.ifs[i], f.bytes(), 10000))
		}
		b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
	})
}
