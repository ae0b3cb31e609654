package sandbox

import (
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
)

// Every architecture that Weir is built for knows all system calls by name;
// the filter could not be loaded otherwise.
func TestSystemCallsHaveNames(t *testing.T) {
	for _, name := range []string{"amd64", "arm64"} {
		a, err := arch.GetInfo(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range policy().Syscalls {
			for _, call := range g.Names {
				if _, ok := a.SyscallNames[call]; !ok {
					t.Errorf("%s has no %s", name, call)
				}
			}
			for _, call := range g.NamesWithCondtions {
				if _, ok := a.SyscallNames[call.Name]; !ok {
					t.Errorf("%s has no %s", name, call.Name)
				}
			}
		}
	}
}
