package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// Event is what a program reports: a packet that was dropped, or one that was
// judged anew and allowed or proxied.
type Event struct {
	Time     time.Time
	Word     uint64
	Src, Dst netip.AddrPort // ports are zero where there are none
	Protocol uint8
	TCPFlags uint8
	Drop     bool
	Reason   bpf.Reason
	Ingress  bool   // judged at the endpoint's ingress, else its egress
	Ifindex  uint32 // of the endpoint
	Endpoint uint32 // plan.Endpoint.ID
	Peer     plan.Peer
	Class    plan.Class
	Row      plan.Row
	Verdict  rule.Verdict
	Port     uint16 // that was judged: by Service, a backend's
}

// Events calls f with every event, drops and flows from a goroutine each, until
// ctx ends.
func (d *Datapath) Events(ctx context.Context, f func(Event)) error {
	boot, err := bootTime()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range []string{bpf.MapDrops, bpf.MapFlows} {
		r, err := ringbuf.NewReader(d.Map(name))
		if err != nil {
			return fmt.Errorf("read events from %s: %w", name, err)
		}
		stop := context.AfterFunc(ctx, func() { _ = r.Close() })
		g.Go(func() error {
			defer stop()
			return errors.Join(readEvents(r, boot, f), r.Close())
		})
	}
	return g.Wait()
}

func readEvents(r *ringbuf.Reader, boot time.Time, f func(Event)) error {
	var rec ringbuf.Record
	for {
		err := r.ReadInto(&rec)
		if errors.Is(err, ringbuf.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		var raw bpf.WeirEvent
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("decode an event of %d bytes: %w", len(rec.RawSample), err)
		}
		f(toEvent(raw, boot))
	}
}

func toEvent(r bpf.WeirEvent, boot time.Time) Event {
	return Event{
		Time:     boot.Add(time.Duration(r.Time)),
		Word:     r.Word,
		Src:      netip.AddrPortFrom(fromAddr(r.Src), network(r.Sport)),
		Dst:      netip.AddrPortFrom(fromAddr(r.Dst), network(r.Dport)),
		Protocol: r.Protocol,
		TCPFlags: r.TcpFlags,
		Drop:     r.Kind != uint8(bpf.EventAllow),
		Reason:   bpf.Reason(r.Reason),
		Ingress:  r.Ingress != 0,
		Ifindex:  r.Ifindex,
		Endpoint: r.Endpoint,
		Peer:     plan.Peer(r.Peer),
		Class:    plan.Class(r.ClassId),
		Row:      plan.Row(r.Row),
		Verdict:  rule.Verdict(r.Verdict),
		Port:     r.Port,
	}
}

// bootTime is when the clock of events was zero.
func bootTime() (time.Time, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}, fmt.Errorf("read the clock: %w", err)
	}
	return time.Now().Add(-time.Duration(ts.Nano())), nil
}
