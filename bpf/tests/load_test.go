package tests

import (
	"testing"

	"weir.dev/weir/bpf/datapath"
)

// Every program passes the verifier, and every name finds its part.
func TestLoad(t *testing.T) {
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
	}
	for _, name := range datapath.PinnedMaps() {
		if k.Maps[name] == nil {
			t.Errorf("map %s is not in the object", name)
		}
	}
}
