package plan

import (
	"net/netip"

	"weir.dev/weir/engine/rule"
)

// JudgeAcross judges a packet that is slow: it reads the word, its endpoint and
// what its peer stands for in one image, all else in a later one.
func JudgeAcross(early, late *Image, p Packet) Judgement {
	then := *late
	then.Word = early.Word
	return judge(slow{&Model{early}, &Model{&then}}, p)
}

type slow struct{ early, late *Model }

func (s slow) endpoint(ifindex uint32) ([]netip.Addr, Rows, bool) { return s.early.endpoint(ifindex) }
func (s slow) resolve(a netip.Addr) PeerRef                       { return s.early.resolve(a) }
func (s slow) service(k ServiceKey) ([]Backend, bool)             { return s.late.service(k) }
func (s slow) class(p Peer) Class                                 { return s.late.class(p) }
func (s slow) cell(k CellKey) (PortMap, bool)                     { return s.late.cell(k) }
func (s slow) pair(k RuleSetPair) rule.Verdict                    { return s.late.pair(k) }
