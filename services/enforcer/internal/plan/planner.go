package plan

import (
	"context"
	"fmt"
)

// Planner knows what the maps hold and takes them to what they should hold. It
// is the only writer of its target. Not safe for concurrent use.
type Planner struct {
	limits Limits
	target Target

	// known is false before the first Adopt and after a failed Apply: the
	// fields below say nothing then.
	known    bool
	adopted  bool // and no Apply since
	word     uint64
	realized State
	ranges   *extents[Range]
	backends *extents[Backend]
	ghosts   ghosts
}

// Result says what Apply did.
type Result struct {
	Writes int    // map entries written
	Moved  bool   // the word moved, now or at adoption: flows are judged anew
	Word   uint64 // now in force
	// Entries of a side's weir_ranges and weir_backends that are in use.
	Ranges, Backends int
}

// NewPlanner returns a planner for maps of the given sizes. Call Adopt next.
func NewPlanner(limits Limits, target Target) *Planner {
	return &Planner{limits: limits, target: target}
}

// Adopt reads the live side, waits a grace period, makes the resting side equal
// and moves the word. Who called it before must hold the lock on the pins.
func (p *Planner) Adopt(ctx context.Context) error {
	im, err := p.target.Read(ctx)
	if err != nil {
		return fmt.Errorf("read the maps: %w", err)
	}
	p.known = false
	s := im.State()
	p.ranges, p.backends = p.newExtents()
	for key, x := range im.Cells[im.Live()] {
		if !p.ranges.adopt(s.Cells[key], x) {
			return fmt.Errorf("cell %+v lies at %+v, where Weir would not put it: remove the pins to start anew", key, x)
		}
	}
	for key, x := range im.Services[im.Live()] {
		if !p.backends.adopt(s.Services[key], x) {
			return fmt.Errorf("service %+v lies at %+v, where Weir would not put it: remove the pins to start anew", key, x)
		}
	}
	if err := Do(ctx, p.target, im.restore()); err != nil {
		return fmt.Errorf("rebuild the resting side: %w", err)
	}
	p.word, p.realized, p.ghosts = im.Word+1, s, ghosts{}
	p.known, p.adopted = true, true
	return nil
}

// Realized returns what both sides say. It must not be changed.
func (p *Planner) Realized() State { return p.realized }

// Word returns the word in force.
func (p *Planner) Word() uint64 { return p.word }

// Apply makes the target say what desired says. After an error the maps show
// the old state or the new one to each packet; call Apply again: it begins by
// reading them.
func (p *Planner) Apply(ctx context.Context, desired State) (Result, error) {
	if !p.known {
		if err := p.Adopt(ctx); err != nil {
			return Result{}, err
		}
	}
	ops, err := p.plan(desired)
	if err != nil {
		return Result{}, err
	}
	if err := Do(ctx, p.target, ops); err != nil {
		p.known = false
		return Result{}, fmt.Errorf("write the maps: %w", err)
	}
	res := Result{Word: p.word, Moved: p.adopted}
	p.adopted = false
	for _, op := range ops {
		switch op := op.(type) {
		case Wait:
		case Flip:
			res.Moved, res.Word = true, op.Word
		default:
			res.Writes++
		}
	}
	p.ghosts = p.ghosts.after(ops, &p.realized)
	p.word, p.realized = res.Word, desired
	res.Ranges, res.Backends = p.ranges.used(), p.backends.used()
	return res, nil
}

// plan returns the writes from realized to desired. It takes places for new
// port maps and gives back old ones, as if the writes were done.
func (p *Planner) plan(desired State) ([]Op, error) {
	if err := p.limits.check(p.realized, desired); err != nil {
		return nil, err
	}
	t := &transition{
		from: &p.realized, to: &desired, limits: p.limits,
		word: p.word, live: uint8(p.word & 1), rest: 1 - uint8(p.word&1),
	}
	t.compare()
	if t.empty() {
		return nil, nil
	}
	if err := p.place(t); err != nil {
		p.known = false // some places were taken
		return nil, err
	}
	ops := t.light
	if t.loud() {
		ops = t.full
	}
	list, err := ops()
	if err == nil && p.ghosts.see(list, t.live) {
		list = append([]Op{Wait{}}, list...)
	}
	return list, err
}

// place finds places for new port maps and backends. If those that are free
// are too scattered, everything moves to places that are counted anew.
func (p *Planner) place(t *transition) error {
	if err := t.place(p.ranges, p.backends); err == nil {
		t.giveBack(p.ranges, p.backends)
		return nil
	}
	t.placeAnew()
	p.ranges, p.backends = p.newExtents()
	return t.place(p.ranges, p.backends)
}

func (p *Planner) newExtents() (*extents[Range], *extents[Backend]) {
	return newExtents("weir_ranges", p.limits.Ranges, encodeRanges),
		newExtents("weir_backends", p.limits.Backends, encodeBackends)
}
