package tests

import (
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// ceilings are the instructions that the verifier may need for each program,
// of the million that it would grant: growth is to be noticed.
var ceilings = map[string]uint32{
	datapath.FromPod: 120000, datapath.ToPod: 120000,
	datapath.FromProxyIn: 15000, datapath.FromProxyOut: 15000,
	datapath.ProxyArrival: 10, datapath.SteerIn: 100, datapath.SteerOut: 100,
}

// Every program passes the verifier, and every name finds its part. The log has
// the programs' sizes.
func TestInstructionCounts(t *testing.T) {
	k := load(t, small)
	for _, name := range datapath.Programs() {
		p := k.Programs[name]
		if p == nil {
			t.Errorf("program %s is not in the object", name)
			continue
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.VerifiedInstructions()
		t.Logf("%-15s %7d instructions verified", name, n)
		if n > ceilings[name] {
			t.Errorf("%s takes the verifier %d instructions, want at most %d", name, n, ceilings[name])
		}
	}
	for _, name := range datapath.PinnedMaps() {
		if k.Maps[name] == nil {
			t.Errorf("map %s is not in the object", name)
		}
	}
}
