package flow

import (
	"fmt"
	"slices"
	"strings"

	bpf "weir.dev/weir/bpf/datapath"
	flowv1 "weir.dev/weir/proto/weir/flow/v1"
)

// Matches says whether a flow passes every filter that the request names.
func Matches(q *flowv1.ObserveRequest, f *flowv1.Flow) bool {
	ends := []*flowv1.Peer{f.GetSource(), f.GetDestination(), f.GetEndpoint()}
	switch {
	case len(q.GetPods()) > 0 && !slices.ContainsFunc(ends, func(p *flowv1.Peer) bool { return podIn(q.GetPods(), p) }):
		return false
	case len(q.GetNamespaces()) > 0 && !slices.ContainsFunc(ends, func(p *flowv1.Peer) bool {
		return p.GetNamespace() != "" && slices.Contains(q.GetNamespaces(), p.GetNamespace())
	}):
		return false
	case len(q.GetVerdicts()) > 0 && !slices.Contains(q.GetVerdicts(), f.GetVerdict()):
		return false
	case len(q.GetReasons()) > 0 && !slices.Contains(q.GetReasons(), f.GetReason()):
		return false
	case len(q.GetPorts()) > 0 && !slices.Contains(q.GetPorts(), f.GetSourcePort()) && !slices.Contains(q.GetPorts(), f.GetDestinationPort()):
		return false
	}
	return q.GetPathPrefix() == "" || f.GetHttp() != nil && strings.HasPrefix(f.GetHttp().GetPath(), q.GetPathPrefix())
}

// podIn says whether one of the names is the pod's, or that of the workload
// which its name begins with: "app3", "default/app3", "app3-d0b4f6c9g2-cfmbn".
func podIn(names []string, p *flowv1.Peer) bool {
	return p.GetPod() != "" && slices.ContainsFunc(names, func(name string) bool {
		namespace, pod, ok := strings.Cut(name, "/")
		if !ok {
			namespace, pod = p.GetNamespace(), name
		}
		return namespace == p.GetNamespace() && (pod == p.GetPod() || pod != "" && strings.HasPrefix(p.GetPod(), pod+"-"))
	})
}

// check refuses a request for what no flow can have.
func check(q *flowv1.ObserveRequest) error {
	for _, r := range q.GetReasons() {
		if !strings.HasPrefix(r, "http-") && !slices.Contains(reasons(), r) {
			return fmt.Errorf("reason %q: want %s, or one of the proxy's, as http-denied", r, strings.Join(reasons(), ", "))
		}
	}
	return nil
}

// reasons are those of the datapath.
func reasons() []string {
	var out []string
	for r := bpf.ReasonNone + 1; r < bpf.ReasonCount; r++ {
		out = append(out, r.String())
	}
	return out
}
