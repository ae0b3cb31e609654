package layout

import (
	"net/netip"
	"slices"
	"testing"

	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/internal/deptest"
)

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "fmt", "net/netip", "path/filepath", "weir.dev/weir/cli/internal/parts")
}

func TestAddressesLieWhereTheyShould(t *testing.T) {
	v4, v6 := PodRanges()
	seen := map[netip.Addr]string{}
	note := func(a netip.Addr, who string) {
		if other, ok := seen[a]; ok {
			t.Errorf("%s is %s's and %s's", a, other, who)
		}
		seen[a] = who
	}
	for _, a := range Control() {
		note(a.Addr(), "control")
	}
	for _, n := range AllNodes() {
		ranges := n.PodRanges()
		for i, all := range []netip.Prefix{v4, v6} {
			if !all.Contains(ranges[i].Addr()) {
				t.Errorf("%s is not in %s", ranges[i], all)
			}
			if !ranges[i].Contains(n.Gateways()[i]) || !ranges[i].Contains(n.Pod(254)[i]) {
				t.Errorf("%s does not contain the gateway and the last pod", ranges[i])
			}
			note(n.Addresses()[i].Addr(), n.Name)
			note(n.Gateways()[i], n.Name+"'s gateway")
			for number := 2; number <= 254; number++ {
				note(n.Pod(number)[i], "a pod of "+n.Name)
			}
		}
	}
}

func TestPartsAreStartedAfterWhatTheyNeed(t *testing.T) {
	var before []string
	for _, p := range AllParts(parts.At("demo")) {
		for _, need := range p.After {
			if !slices.Contains(before, need) {
				t.Errorf("%s comes before %s", p.Name, need)
			}
		}
		before = append(before, p.Name)
	}
	if len(before) != 1+2+2+2*Nodes {
		t.Errorf("%d parts: %v", len(before), before)
	}
}

func TestSocketsFitIntoTheKernelsPaths(t *testing.T) {
	d := parts.At("twenty-letters-long-")
	for _, p := range AllParts(d) {
		if path := d.HTTPSocket(p.Name); len(path) > 107 {
			t.Errorf("%s has %d letters", path, len(path))
		}
	}
}
