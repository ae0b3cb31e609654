package flow

import (
	"slices"
	"strings"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
)

// Matches says whether a flow passes every filter that the request names.
func Matches(q *flowv1.ObserveRequest, f *flowv1.Flow) bool {
	ends := []*flowv1.Peer{f.GetSource(), f.GetDestination()}
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

// podIn says whether one of the names is the pod's: "pod" or "namespace/pod".
func podIn(names []string, p *flowv1.Peer) bool {
	if p.GetPod() == "" {
		return false
	}
	return slices.Contains(names, p.GetPod()) || slices.Contains(names, p.GetNamespace()+"/"+p.GetPod())
}
