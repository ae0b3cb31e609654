package datapath

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/nodetest"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// flowKey is that of a flow from a port of one address to port 80 of another.
func flowKey(protocol uint8, from, to string, port uint16) bpf.WeirCtKey {
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	return bpf.WeirCtKey{
		Addr: [2]bpf.WeirAddr{toAddr(a), toAddr(b)}, Port: [2]uint16{network(port), network(80)}, Protocol: protocol,
	}
}

// entry is a flow that endpoint 1 judged, silent for so long.
func entry(t *testing.T, silent time.Duration, flags uint32) bpf.WeirCt {
	t.Helper()
	now, err := monotonicSeconds()
	if err != nil {
		t.Fatal(err)
	}
	v := bpf.WeirCt{Flags: flags | bpf.CTAInitiates, LastSeen: now - uint32(silent/time.Second), Endpoint: [2]uint32{1, 0}, Owner: 1}
	v.Slot[bpf.SlotEgress].Ifindex, v.Slot[bpf.SlotEgress].Word, v.Slot[bpf.SlotEgress].Verdict = 5, 2, bpf.Allow
	return v
}

func TestFlowsAreForgottenInTime(t *testing.T) {
	tests := map[string]struct {
		protocol uint8
		silent   time.Duration
		flags    uint32
		reset    bool
		want     bool // it goes
	}{
		"an established connection stays":   {rule.TCP, time.Hour, bpf.CTSeenReply | bpf.CTEstablished, false, false},
		"until it was silent for six hours": {rule.TCP, 7 * time.Hour, bpf.CTSeenReply | bpf.CTEstablished, false, true},
		"an unanswered SYN goes":            {rule.TCP, 2 * time.Minute, 0, false, true},
		"a SYN that was answered goes":      {rule.TCP, time.Minute, bpf.CTSeenReply, false, true},
		"a half closed connection stays":    {rule.TCP, time.Hour, bpf.CTSeenReply | bpf.CTEstablished | bpf.CTFINA, false, false},
		"a closed connection goes":          {rule.TCP, time.Minute, bpf.CTSeenReply | bpf.CTEstablished | bpf.CTFINA | bpf.CTFINB, false, true},
		"a reset connection goes":           {rule.TCP, time.Minute, bpf.CTSeenReply | bpf.CTEstablished | bpf.CTRST, false, true},
		"a connection that was cut goes":    {rule.TCP, time.Minute, bpf.CTSeenReply | bpf.CTEstablished, true, true},
		"an answered datagram's flow stays": {rule.UDP, 100 * time.Second, bpf.CTSeenReply, false, false},
		"an unanswered one's goes":          {rule.UDP, 100 * time.Second, 0, false, true},
	}
	d := open(t, nodetest.New(t))
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := d.Map(bpf.MapCtAny)
			if test.protocol == rule.TCP {
				m = d.Map(bpf.MapCtTCP)
			}
			k, v := flowKey(test.protocol, "10.0.0.1", "10.0.0.2", 4000), entry(t, test.silent, test.flags)
			if test.reset {
				v.Slot[bpf.SlotEgress].Ifindex = 0
			}
			if err := m.Put(k, v); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			err := m.Delete(k)
			if gone := errors.Is(err, ebpf.ErrKeyNotExist); gone != test.want {
				t.Errorf("gone: %v, want %v", gone, test.want)
			}
		})
	}
}

// TestRoomIsGivenBack: what the collector takes from the map, it gives to the
// endpoint's quota. More flows than one batch holds.
func TestRoomIsGivenBack(t *testing.T) {
	n := nodetest.New(t)
	d, err := Open(Config{BPFFS: n.BPFFS, Sizes: bpf.Sizes{CtTCP: 16384}}, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	const flows = 10000
	dead, alive := entry(t, time.Hour, bpf.CTRST), entry(t, 0, bpf.CTSeenReply)
	var keys []bpf.WeirCtKey
	var values []bpf.WeirCt
	for port := range uint16(flows) {
		v := dead
		if port%5 == 0 {
			v = alive
		}
		keys, values = append(keys, flowKey(rule.TCP, "10.0.0.1", "10.0.0.2", port)), append(values, v)
	}
	if _, err := d.Map(bpf.MapCtTCP).BatchUpdate(keys, values, nil); err != nil {
		t.Fatal(err)
	}
	left, _, err := d.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var freed uint32
	if err := d.Map(bpf.MapQuotaFreed).Lookup(uint32(1), &freed); err != nil {
		t.Fatal(err)
	}
	if left != flows/5 || freed != flows-flows/5 {
		t.Errorf("%d flows are left and %d were given back, want %d and %d", left, freed, flows/5, flows-flows/5)
	}
	if diff := cmp.Diff(Held{"ct_tcp", flows / 5, 16384}, d.Conntrack()[0]); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	if err := d.Purge(0); err != nil {
		t.Fatal(err)
	}
	if left, _, _ := d.Collect(t.Context()); left != flows/5 {
		t.Errorf("%d flows are left after nobody's were purged, want %d", left, flows/5)
	}
	if err := d.Purge(1); err != nil {
		t.Fatal(err)
	}
	if left, _, _ := d.Collect(t.Context()); left != 0 {
		t.Errorf("%d flows are left of an endpoint that is gone", left)
	}
	if err := d.Map(bpf.MapQuotaFreed).Lookup(uint32(1), &freed); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("its quota is left: %v", err)
	}
}

// onePort lets the peer reach one port, both ways.
func onePort(pods []uint32, open uint16) plan.State {
	const tcp = uint32(rule.TCP) << 16
	own, peer := netip.MustParseAddr("10.0.7.1"), netip.MustParseAddr("10.0.0.1")
	return plan.State{
		Endpoints: map[uint32]plan.Endpoint{pods[0]: {ID: 1, Egress: 2, Ingress: 2, Addrs: []netip.Addr{own}}},
		Addresses: map[netip.Addr]plan.PeerRef{peer: {Peer: 1}},
		Classes:   map[plan.Peer]plan.Class{1: 1},
		Cells: map[plan.CellKey]plan.PortMap{
			{Row: 2, Class: plan.DefaultClass}: {{Start: 0}, {Start: tcp | uint32(open), Verdict: rule.Allowed}, {Start: tcp | uint32(open) + 1}},
		},
	}
}

// TestP10NoSlotOfOneWordHasAnothersVerdict flips in a tight loop under load:
// every slot is one that the policy of its word allows.
func TestP10NoSlotOfOneWordHasAnothersVerdict(t *testing.T) {
	_, d, world := pods(t)
	planner := plan.NewPlanner(d.Limits(), d)
	policies := []plan.State{onePort(world.Ifindexes, 80), onePort(world.Ifindexes, 443)}
	openAt := map[uint64]uint16{} // word → the port that its policy opens
	apply(t, planner, policies[0])
	openAt[d.Word()] = 80

	flipped := make(chan error)
	go func() {
		for i := range 300 {
			res, err := planner.Apply(t.Context(), policies[(i+1)%2])
			if err != nil {
				flipped <- err
				return
			}
			openAt[res.Word] = []uint16{443, 80}[i%2]
			err = d.TCPFlows(t.Context(), func(f Flow) {
				for _, s := range []Slot{f.Egress, f.Ingress} {
					if s.Ifindex != 0 && openAt[s.Word] != f.Responder().Port() {
						t.Errorf("a slot of word %d allows port %d, but its policy opens %d", s.Word, f.Responder().Port(), openAt[s.Word])
					}
				}
			})
			if err != nil {
				flipped <- err
				return
			}
		}
		flipped <- nil
	}()
	for packets := 0; ; packets++ {
		select {
		case err := <-flipped:
			if err != nil || packets < 300 {
				t.Errorf("%d packets were judged meanwhile, %v", packets, err)
			}
			return
		default:
		}
		// The program runs on this thread: it has the node's namespace.
		probe(t, d, plan.Packet{
			Ifindex: world.Ifindexes[0], Ingress: packets%2 == 0, Own: world.Own[0], Peer: world.Addrs[0],
			Protocol: rule.TCP, Port: []uint16{80, 443}[packets/2%2],
		})
	}
}

// TestP6AddressMeansSomeoneElse: after an address was given to another, or
// taken, what was judged of its flows does not count any more.
func TestP6AddressMeansSomeoneElse(t *testing.T) {
	tests := map[string]func(*plan.State){
		"relabelled": func(s *plan.State) {
			s.Addresses = map[netip.Addr]plan.PeerRef{netip.MustParseAddr("10.0.0.1"): {Peer: 2}}
		},
		"gone": func(s *plan.State) { s.Addresses = nil },
		"pending": func(s *plan.State) {
			s.Addresses = map[netip.Addr]plan.PeerRef{netip.MustParseAddr("10.0.0.1"): {Peer: 1, Flags: plan.FlagPending}}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			_, d, world := pods(t)
			planner := plan.NewPlanner(d.Limits(), d)
			before := onePort(world.Ifindexes, 80)
			before.Classes[2] = 2
			before.Cells[plan.CellKey{Row: 2, Class: 2}] = plan.PortMap{{Start: 0}}
			apply(t, planner, before)
			packet := plan.Packet{Ifindex: world.Ifindexes[0], Ingress: true, Own: world.Own[0], Peer: world.Addrs[0], Protocol: rule.TCP, Port: 80}
			if got := probe(t, d, packet); got != passed {
				t.Fatalf("outcome before is %d", got)
			}
			word := d.Word()
			after := before
			change(&after)
			if res := apply(t, planner, after); !res.Moved {
				t.Error("the word did not move")
			}
			err := d.TCPFlows(t.Context(), func(f Flow) {
				if f.Ingress.Word != word {
					t.Errorf("slot %+v, want one of word %d", f.Ingress, word)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := probe(t, d, packet); got != dropped {
				t.Errorf("outcome after is %d", got)
			}
		})
	}
}

func TestEventsAndCounters(t *testing.T) {
	_, d, world := pods(t)
	apply(t, plan.NewPlanner(d.Limits(), d), onePort(world.Ifindexes, 80))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	events, done := make(chan Event, 64), make(chan error)
	go func() { done <- d.Events(ctx, func(e Event) { events <- e }) }()
	for _, port := range []uint16{80, 81} {
		probe(t, d, plan.Packet{Ifindex: world.Ifindexes[0], Ingress: true, Own: world.Own[0], Peer: world.Addrs[0], Protocol: rule.TCP, Port: port})
	}
	var got []Event
	for len(got) < 2 {
		select {
		case e := <-events:
			got = append(got, e)
		case <-ctx.Done():
			t.Fatalf("only %d events came", len(got))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("events: %v", err)
	}
	slices.SortFunc(got, func(a, b Event) int { return int(a.Dst.Port()) - int(b.Dst.Port()) })
	for i := range got {
		if since := time.Since(got[i].Time); since < 0 || since > time.Minute {
			t.Errorf("event %d is of %v", i, got[i].Time)
		}
		got[i].Time = time.Time{}
	}
	allowed := Event{
		Word: d.Word(), Src: netip.AddrPortFrom(world.Addrs[0], clientPort), Dst: netip.AddrPortFrom(world.Own[0], 80),
		Protocol: rule.TCP, TCPFlags: 2, Ingress: true, Ifindex: world.Ifindexes[0], Endpoint: 1, Peer: 1, Class: 1, Row: 2,
		Verdict: rule.Allowed, Port: 80,
	}
	denied := allowed
	denied.Dst, denied.Port = netip.AddrPortFrom(world.Own[0], 81), 81
	denied.Drop, denied.Reason, denied.Verdict = true, bpf.ReasonNoRule, rule.Denied
	same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff([]Event{allowed, denied}, got, same); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	counts, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Count{{bpf.ReasonNone, true, 1}, {bpf.ReasonNoRule, true, 1}, {bpf.ReasonNoRule, false, 0}} {
		if !slices.Contains(counts, want) {
			t.Errorf("counts %v do not have %v", counts, want)
		}
	}
	if drops, flows, err := d.Lost(); drops != 0 || flows != 0 || err != nil {
		t.Errorf("lost %d drops and %d flows, %v", drops, flows, err)
	}
}
