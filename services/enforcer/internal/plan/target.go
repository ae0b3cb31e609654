package plan

import (
	"context"
	"fmt"
	"net/netip"

	"weir.dev/weir/engine/rule"
)

// Extent is n consecutive entries of weir_ranges or weir_backends, from First
// on. N zero denies.
type Extent struct{ First, N uint32 }

// Rows of one side of an endpoint.
type Rows struct{ Egress, Ingress Row }

// EndpointImage is an endpoint as the kernel holds it: rows by side.
type EndpointImage struct {
	ID      uint32
	Rows    [2]Rows
	PodMAC  [6]byte
	HostMAC [6]byte
	Addrs   []netip.Addr
}

// The writes. Each is atomic for a packet, and doing it again changes nothing.
type (
	// EndpointWrite puts or deletes an endpoint, both sides at once.
	EndpointWrite struct {
		Ifindex uint32
		Value   EndpointImage
		Delete  bool
	}
	// AddressWrite puts or deletes a full address.
	AddressWrite struct {
		Addr   netip.Addr
		Value  PeerRef
		Delete bool
	}
	// PrefixWrite puts or deletes a prefix.
	PrefixWrite struct {
		Prefix netip.Prefix
		Value  PeerRef
		Delete bool
	}
	// ClassWrite sets a peer's class on one side; NoClass clears it.
	ClassWrite struct {
		Side  uint8
		Peer  Peer
		Class Class
	}
	// CellWrite puts or deletes a cell of one side.
	CellWrite struct {
		Side   uint8
		Key    CellKey
		Value  Extent
		Delete bool
	}
	// RangeWrite sets one range of one side.
	RangeWrite struct {
		Side  uint8
		Index uint32
		Value Range
	}
	// ServiceWrite puts or deletes a service of one side.
	ServiceWrite struct {
		Side   uint8
		Key    ServiceKey
		Value  Extent
		Delete bool
	}
	// BackendWrite sets one backend of one side.
	BackendWrite struct {
		Side  uint8
		Index uint32
		Value Backend
	}
	// PairWrite puts or deletes the rule set that stands for two.
	PairWrite struct {
		Pair   RuleSetPair
		Value  rule.Verdict
		Delete bool
	}
	// Flip moves the word; its low bit is the live side.
	Flip struct{ Word uint64 }
	// Wait lasts until no packet is judged any more that began before it.
	Wait struct{}
)

// Op is one write, Flip or Wait.
type Op interface{ isOp() }

func (EndpointWrite) isOp() {}
func (AddressWrite) isOp()  {}
func (PrefixWrite) isOp()   {}
func (ClassWrite) isOp()    {}
func (CellWrite) isOp()     {}
func (RangeWrite) isOp()    {}
func (ServiceWrite) isOp()  {}
func (BackendWrite) isOp()  {}
func (PairWrite) isOp()     {}
func (Flip) isOp()          {}
func (Wait) isOp()          {}

// Target is what plans are done to. A slice's writes are done in its order; no
// key is in one slice twice. After an error the state is what Read says.
type Target interface {
	Read(ctx context.Context) (*Image, error)
	WriteEndpoints([]EndpointWrite) error
	WriteAddresses([]AddressWrite) error
	WritePrefixes([]PrefixWrite) error
	WriteClasses([]ClassWrite) error
	WriteCells([]CellWrite) error
	WriteRanges([]RangeWrite) error
	WriteServices([]ServiceWrite) error
	WriteBackends([]BackendWrite) error
	WritePairs([]PairWrite) error
	Flip(word uint64) error
	Wait(ctx context.Context) error
}

// Do does ops in order, neighbours of one kind in one call.
func Do(ctx context.Context, t Target, ops []Op) error {
	for len(ops) > 0 {
		n, err := doRun(ctx, t, ops)
		if err != nil {
			return fmt.Errorf("%T: %w", ops[0], err)
		}
		ops = ops[n:]
	}
	return nil
}

// doRun does the longest run of one kind that ops begin with.
func doRun(ctx context.Context, t Target, ops []Op) (int, error) {
	switch op := ops[0].(type) {
	case EndpointWrite:
		return batch(ops, t.WriteEndpoints, op)
	case AddressWrite:
		return batch(ops, t.WriteAddresses, op)
	case PrefixWrite:
		return batch(ops, t.WritePrefixes, op)
	case ClassWrite:
		return batch(ops, t.WriteClasses, op)
	case CellWrite:
		return batch(ops, t.WriteCells, op)
	case RangeWrite:
		return batch(ops, t.WriteRanges, op)
	case ServiceWrite:
		return batch(ops, t.WriteServices, op)
	case BackendWrite:
		return batch(ops, t.WriteBackends, op)
	case PairWrite:
		return batch(ops, t.WritePairs, op)
	case Flip:
		return 1, t.Flip(op.Word)
	case Wait:
		return 1, t.Wait(ctx)
	default:
		panic(fmt.Sprintf("plan: no way to do %T", op))
	}
}

func batch[W Op](ops []Op, write func([]W) error, first W) (int, error) {
	run := []W{first}
	for _, op := range ops[1:] {
		w, same := op.(W)
		if !same {
			break
		}
		run = append(run, w)
	}
	return len(run), write(run)
}
