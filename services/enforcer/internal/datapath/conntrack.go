package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
)

// How long a flow without a packet is remembered.
const (
	tcpEstablished = 6 * time.Hour
	tcpOpening     = 10 * time.Second // a SYN that comes again makes it again
	tcpClosing     = 10 * time.Second
	anyReplied     = 2 * time.Minute
	anyUnreplied   = time.Minute
)

// Flow is one entry of conntrack.
type Flow struct {
	A, B       netip.AddrPort // A is the lesser
	Protocol   uint8
	AInitiates bool // A sent the first packet; of a guessed flow, perhaps
	Guessed    bool
	Egress     Slot // the initiator's
	Ingress    Slot // the responder's
	ProxiedOut bool // through weir-out, since its SYN
	ProxiedIn  bool // through weir-in
	Denied     bool // a packet of it was denied since it began
}

// Slot is one judgement. Endpoint zero: none was made on this node.
type Slot struct {
	Endpoint uint32
	Ifindex  uint32
	Word     uint64
	Verdict  rule.Verdict
}

// Initiator and Responder are the flow's ends.
func (f Flow) Initiator() netip.AddrPort {
	if f.AInitiates {
		return f.A
	}
	return f.B
}

// Responder is the end that the first packet went to.
func (f Flow) Responder() netip.AddrPort {
	if f.AInitiates {
		return f.B
	}
	return f.A
}

// TCPFlows calls f for every TCP flow that conntrack holds.
func (d *Datapath) TCPFlows(ctx context.Context, f func(Flow)) error {
	return eachBatch(d.Map(bpf.MapCtTCP), func(keys []bpf.WeirCtKey, values []bpf.WeirCt) error {
		for i := range keys {
			f(toFlow(keys[i], values[i]))
		}
		return ctx.Err()
	})
}

func toFlow(k bpf.WeirCtKey, v bpf.WeirCt) Flow {
	slot := func(i int) Slot {
		s := v.Slot[i]
		return Slot{Endpoint: v.Endpoint[i], Ifindex: s.Ifindex, Word: s.Word, Verdict: rule.Verdict(s.Verdict)}
	}
	return Flow{
		A:          netip.AddrPortFrom(fromAddr(k.Addr[0]), network(k.Port[0])),
		B:          netip.AddrPortFrom(fromAddr(k.Addr[1]), network(k.Port[1])),
		Protocol:   k.Protocol,
		AInitiates: v.Flags&bpf.CTAInitiates != 0,
		Guessed:    v.Flags&bpf.CTGuessed != 0,
		Egress:     slot(bpf.SlotEgress),
		Ingress:    slot(bpf.SlotIngress),
		ProxiedOut: v.Flags&bpf.CTProxiedEgress != 0,
		ProxiedIn:  v.Flags&bpf.CTProxiedIngress != 0,
		Denied:     v.Flags&bpf.CTDenied != 0,
	}
}

// Collect forgets flows that have been still for too long. It returns how many
// flows are left in weir_ct_tcp and weir_ct_any.
func (d *Datapath) Collect(ctx context.Context) (tcp, other int, err error) {
	now, err := monotonicSeconds()
	if err != nil {
		return 0, 0, err
	}
	expired := func(k bpf.WeirCtKey, v bpf.WeirCt) bool {
		idle := time.Duration(int32(now-v.LastSeen)) * time.Second
		return idle > lifetime(k.Protocol, v)
	}
	tcp, err = d.forget(ctx, bpf.MapCtTCP, expired)
	if err != nil {
		return 0, 0, err
	}
	if other, err = d.forget(ctx, bpf.MapCtAny, expired); err != nil {
		return 0, 0, err
	}
	d.held.Store(&[2]int{tcp, other})
	return tcp, other, nil
}

// Held is how full a conntrack map was when it was last collected from.
type Held struct {
	Map               string // without weir_
	Entries, Capacity int
}

// Conntrack tells how full the conntrack maps are.
func (d *Datapath) Conntrack() []Held {
	var n [2]int
	if held := d.held.Load(); held != nil {
		n = *held
	}
	var list []Held
	for i, name := range []string{bpf.MapCtTCP, bpf.MapCtAny} {
		list = append(list, Held{strings.TrimPrefix(name, "weir_"), n[i], int(d.Map(name).MaxEntries())})
	}
	return list
}

func lifetime(protocol uint8, v bpf.WeirCt) time.Duration {
	replied := v.Flags&bpf.CTSeenReply != 0
	switch {
	case protocol != rule.TCP && replied:
		return anyReplied
	case protocol != rule.TCP:
		return anyUnreplied
	case v.Flags&bpf.CTRST != 0, v.Flags&bpf.CTFINA != 0 && v.Flags&bpf.CTFINB != 0:
		return tcpClosing
	case v.Slot[0].Ifindex == 0 && v.Slot[1].Ifindex == 0: // was reset: forbidden
		return tcpClosing
	case v.Flags&bpf.CTEstablished != 0:
		return tcpEstablished
	}
	return tcpOpening
}

// Purge forgets the flows that an endpoint judged, and its quota: it is gone, or
// just came.
func (d *Datapath) Purge(endpoint uint32) error {
	if endpoint == 0 {
		return nil // that is who judged nothing
	}
	made := func(_ bpf.WeirCtKey, v bpf.WeirCt) bool {
		return v.Endpoint[0] == endpoint || v.Endpoint[1] == endpoint || v.Owner == endpoint
	}
	var errs []error
	for _, name := range []string{bpf.MapCtTCP, bpf.MapCtAny} {
		_, err := d.forget(context.Background(), name, made)
		errs = append(errs, err)
	}
	for _, name := range []string{bpf.MapQuotaUsed, bpf.MapQuotaFreed} {
		errs = append(errs, deleteEach(d.Map(name), []uint32{endpoint}))
	}
	return errors.Join(errs...)
}

// forget deletes the entries that doomed says yes to, in batches, gives the
// room back to whose quota it was, and returns how many entries are left.
func (d *Datapath) forget(ctx context.Context, name string, doomed func(bpf.WeirCtKey, bpf.WeirCt) bool) (left int, err error) {
	m := d.Map(name)
	freed := map[uint32]uint32{}
	err = eachBatch(m, func(keys []bpf.WeirCtKey, values []bpf.WeirCt) error {
		for i := range keys {
			if !doomed(keys[i], values[i]) {
				left++
				continue
			}
			gone, err := forgetOne(m, keys[i], doomed)
			if err != nil {
				return fmt.Errorf("forget a flow in %s: %w", name, err)
			}
			if name == bpf.MapCtTCP && gone.Owner != 0 {
				freed[gone.Owner]++
			}
		}
		return ctx.Err()
	})
	return left, errors.Join(err, d.giveRoom(freed))
}

// forgetOne deletes an entry, unless a connection has begun with its ports since
// it was read. It returns what was deleted, or zero.
func forgetOne(m *ebpf.Map, k bpf.WeirCtKey, doomed func(bpf.WeirCtKey, bpf.WeirCt) bool) (bpf.WeirCt, error) {
	var now bpf.WeirCt
	err := m.Lookup(k, &now)
	if err == nil && doomed(k, now) {
		err = m.Delete(k)
	} else {
		now = bpf.WeirCt{}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return bpf.WeirCt{}, nil
	}
	return now, err
}

// giveRoom adds to what was freed of endpoints' quotas. Nobody else writes that.
func (d *Datapath) giveRoom(freed map[uint32]uint32) error {
	d.quota.Lock()
	defer d.quota.Unlock()
	for endpoint, n := range freed {
		var so uint32
		m := d.Map(bpf.MapQuotaFreed)
		if err := m.Lookup(endpoint, &so); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read the quota of endpoint %d: %w", endpoint, err)
		}
		if err := m.Put(endpoint, so+n); err != nil {
			return fmt.Errorf("give room to endpoint %d: %w", endpoint, err)
		}
	}
	return nil
}

func monotonicSeconds() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return uint32(ts.Sec), nil
}

func inode(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}
