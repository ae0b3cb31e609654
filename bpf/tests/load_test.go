package tests

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"weir.dev/weir/bpf/datapath"
)

// Every program passes the verifier, and every name finds its part.
func TestLoad(t *testing.T) {
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := datapath.LoadWeir()
	if err != nil {
		t.Fatal(err)
	}
	sizes := datapath.Sizes{Peers: 64, Ranges: 256, Backends: 64, CtTCP: 1024, CtAny: 1024}
	if err := sizes.Apply(spec); err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			t.Log(strings.Join(ve.Log[max(0, len(ve.Log)-60):], "\n"))
		}
		t.Fatal(err)
	}
	defer coll.Close()
	for _, name := range datapath.Programs() {
		p := coll.Programs[name]
		if p == nil {
			t.Errorf("program %s is not in the object", name)
			continue
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.VerifiedInstructions()
		t.Logf("%-15s %6d instructions, %7d verified", name, len(spec.Programs[name].Instructions), n)
	}
	for _, name := range datapath.PinnedMaps() {
		if coll.Maps[name] == nil {
			t.Errorf("map %s is not in the object", name)
		}
	}
}
