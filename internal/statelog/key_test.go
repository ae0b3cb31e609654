package statelog_test

import (
	"testing"

	"weir.dev/weir/internal/deptest"
	"weir.dev/weir/internal/statelog"
)

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "std", "github.com/nats-io/nats.go/...", "google.golang.org/protobuf/...",
		"weir.dev/weir/proto/...", "weir.dev/weir/internal/bus", "weir.dev/weir/internal/logkey")
}

func TestKeysKeepNames(t *testing.T) {
	for _, want := range [][3]string{
		{"CiliumNetworkPolicy", "default", "rule1"},
		{"NetworkPolicy", "a", "with.dots.in.it"},
		{"ClusterNetworkPolicy", "", "everywhere"},
	} {
		k := statelog.PolicyKey(want[0], want[1], want[2])
		kind, namespace, name := k.Policy()
		if got := [3]string{kind, namespace, name}; got != want || k.Kind() != statelog.Policy {
			t.Errorf("key %s: got %v of kind %s, want %v", k, got, k.Kind(), want)
		}
	}
	if k := statelog.NamespaceKey("kube-system"); k.Name() != "kube-system" || k.Kind() != statelog.Namespace {
		t.Errorf("key %s: name %q, kind %s", k, k.Name(), k.Kind())
	}
	if k := statelog.Key("cidrgroup.x"); k.Kind() != 0 {
		t.Errorf("key %s of a later version is taken for %s", k, k.Kind())
	}
}
