package plan_test

import (
	"context"
	"errors"

	"weir.dev/weir/services/enforcer/internal/plan"
)

var errStopped = errors.New("stopped by the test")

// stepper does writes to a model one by one and calls after each. With stop >= 0
// it fails in place of the write of that number, as a killed process would.
type stepper struct {
	*plan.Model
	after func(n int, op plan.Op)
	n     int
	stop  int
}

func newStepper(m *plan.Model) *stepper {
	return &stepper{Model: m, after: func(int, plan.Op) {}, stop: -1}
}

func step[W plan.Op](s *stepper, ws []W, write func([]W) error) error {
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

func (s *stepper) WriteEndpoints(ws []plan.EndpointWrite) error {
	return step(s, ws, s.Model.WriteEndpoints)
}

func (s *stepper) WriteAddresses(ws []plan.AddressWrite) error {
	return step(s, ws, s.Model.WriteAddresses)
}

func (s *stepper) WritePrefixes(ws []plan.PrefixWrite) error {
	return step(s, ws, s.Model.WritePrefixes)
}

func (s *stepper) WriteClasses(ws []plan.ClassWrite) error {
	return step(s, ws, s.Model.WriteClasses)
}

func (s *stepper) WriteCells(ws []plan.CellWrite) error { return step(s, ws, s.Model.WriteCells) }

func (s *stepper) WriteRanges(ws []plan.RangeWrite) error { return step(s, ws, s.Model.WriteRanges) }

func (s *stepper) WriteServices(ws []plan.ServiceWrite) error {
	return step(s, ws, s.Model.WriteServices)
}

func (s *stepper) WriteBackends(ws []plan.BackendWrite) error {
	return step(s, ws, s.Model.WriteBackends)
}

func (s *stepper) WritePairs(ws []plan.PairWrite) error { return step(s, ws, s.Model.WritePairs) }

func (s *stepper) Flip(word uint64) error {
	return step(s, []plan.Flip{{Word: word}}, func([]plan.Flip) error { return s.Model.Flip(word) })
}

func (s *stepper) Wait(ctx context.Context) error {
	return step(s, []plan.Wait{{}}, func([]plan.Wait) error { return s.Model.Wait(ctx) })
}
