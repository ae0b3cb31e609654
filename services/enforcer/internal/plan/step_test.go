package plan

import (
	"context"
	"errors"
)

var errStopped = errors.New("stopped by the test")

// stepper does writes to a model one by one and calls after each. With stop >= 0
// it fails in place of the write of that number, as a killed process would.
type stepper struct {
	*Model
	after func(n int, op Op)
	n     int
	stop  int
}

func newStepper(m *Model) *stepper { return &stepper{Model: m, after: func(int, Op) {}, stop: -1} }

func step[W Op](s *stepper, ws []W, write func([]W) error) error {
	for i := range ws {
		if s.n == s.stop {
			return errStopped
		}
		if err := write(ws[i : i+1]); err != nil {
			return err
		}
		s.after(s.n, ws[i])
		s.n++
	}
	return nil
}

func (s *stepper) WriteEndpoints(ws []EndpointWrite) error {
	return step(s, ws, s.Model.WriteEndpoints)
}
func (s *stepper) WriteAddresses(ws []AddressWrite) error { return step(s, ws, s.Model.WriteAddresses) }
func (s *stepper) WritePrefixes(ws []PrefixWrite) error   { return step(s, ws, s.Model.WritePrefixes) }
func (s *stepper) WriteClasses(ws []ClassWrite) error     { return step(s, ws, s.Model.WriteClasses) }
func (s *stepper) WriteCells(ws []CellWrite) error        { return step(s, ws, s.Model.WriteCells) }
func (s *stepper) WriteRanges(ws []RangeWrite) error      { return step(s, ws, s.Model.WriteRanges) }
func (s *stepper) WriteServices(ws []ServiceWrite) error  { return step(s, ws, s.Model.WriteServices) }
func (s *stepper) WriteBackends(ws []BackendWrite) error  { return step(s, ws, s.Model.WriteBackends) }
func (s *stepper) WritePairs(ws []PairWrite) error        { return step(s, ws, s.Model.WritePairs) }

func (s *stepper) Flip(word uint64) error {
	return step(s, []Flip{{word}}, func([]Flip) error { return s.Model.Flip(word) })
}

func (s *stepper) Wait(ctx context.Context) error {
	return step(s, []Wait{{}}, func([]Wait) error { return s.Model.Wait(ctx) })
}
