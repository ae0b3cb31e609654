package tests

import (
	"sync"
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// P10: the word is read once a packet. Under flips in a tight loop, while packets
// of one flow are judged on two CPUs, no slot ever has the verdict of one side
// under the word of the other.
func TestP10(t *testing.T) {
	const flips = 20000
	l := newPods(t)
	sideVerdict := func(word uint64) uint32 { return ruleSet + uint32(word&1) }
	for side := range uint32(2) {
		l.cellOf(side, rowA, datapath.ClassDefault, only(tcp, 80, ruleSet+side)...)
	}
	f := aToB(80)
	l.want("SYN", l.fromPod(0, f), redirect, 0)
	src, dst := f.ends()
	key, _ := datapath.CtKey(src, dst, tcp, 0)

	stop := make(chan struct{})
	var load sync.WaitGroup
	for _, packet := range []struct {
		program string
		f       frame
	}{{datapath.FromPod, f.with(ack)}, {datapath.ToPod, f.back().with(ack)}} {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					l.timed(t, l.Programs[packet.program], l.ifs[0], packet.f.bytes(), 5000)
				}
			}
		})
	}
	word, seen := uint64(firstWord), map[uint32]int{}
	for range flips {
		word++
		l.flip(word)
		s := l.stableSlot(key)
		if s.Word > word {
			t.Fatalf("slot has word %d, which is yet to come after %d", s.Word, word)
		}
		if want := sideVerdict(s.Word); s.Verdict != want {
			t.Fatalf("slot has verdict %d under word %d, want %d", s.Verdict, s.Word, want)
		}
		seen[s.Verdict]++
	}
	close(stop)
	load.Wait()
	if len(seen) != 2 {
		t.Errorf("verdicts seen: %v, want both sides'", seen)
	}
}

type slot = struct {
	Word             uint64
	Ifindex, Verdict uint32
}

// stableSlot reads the flow's egress slot until two reads agree, since a reader
// may fall between two of its fields.
func (l *lab) stableSlot(key datapath.WeirCtKey) slot {
	l.Helper()
	read := func() slot {
		var ct datapath.WeirCt
		if err := l.Maps[datapath.MapCtTCP].Lookup(key, &ct); err != nil {
			l.Fatal(err)
		}
		s := ct.Slot[datapath.SlotEgress]
		return slot{s.Word, s.Ifindex, s.Verdict}
	}
	for last := read(); ; {
		now := read()
		if now == last && now.Ifindex != 0 {
			return now
		}
		last = now
	}
}
