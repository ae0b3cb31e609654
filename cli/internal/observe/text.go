package observe

import (
	"fmt"
	"net/netip"
	"strings"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Line tells one flow in one line, for people:
//
//	10:31:02.123 n1 ingress DENY default/app3-x:43211 → default/app1-y:80 TCP no-rule: …
func Line(f *flowv1.Flow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s %s → %s %s",
		f.GetTime().AsTime().Local().Format("15:04:05.000"), f.GetNode(),
		Direction(f.GetDirection()), Verdict(f.GetVerdict()),
		End(f.GetSource(), f.GetSourcePort()), End(f.GetDestination(), f.GetDestinationPort()),
		Protocol(f.GetProtocol()))
	if h := f.GetHttp(); h != nil {
		for _, word := range []string{h.GetMethod(), h.GetPath()} {
			if word != "" { // of a request that could not be read there is neither
				fmt.Fprintf(&b, " %s", word)
			}
		}
		if h.GetStatus() != 0 {
			fmt.Fprintf(&b, " %d", h.GetStatus())
		}
		if h.GetRequests() > 1 {
			fmt.Fprintf(&b, " ×%d", h.GetRequests())
		}
	}
	if f.GetReason() != "" {
		fmt.Fprintf(&b, " %s", f.GetReason())
	}
	if e := f.GetEndpoint(); e.GetPod() != "" {
		fmt.Fprintf(&b, " at %s/%s", e.GetNamespace(), e.GetPod())
	}
	if why := cause(f); why != "" {
		fmt.Fprintf(&b, ": %s", why)
	}
	return b.String()
}

// cause names the rule that decided, or the policies that select the endpoint
// without allowing the flow. Of a request that no rule was asked about (it is
// malformed, say) they are only why the proxy read it.
func cause(f *flowv1.Flow) string {
	if decided := f.GetDecidedBy(); decided != nil {
		return Origin(decided)
	}
	if len(f.GetSelectedBy()) == 0 {
		return ""
	}
	policies := make([]string, 0, len(f.GetSelectedBy()))
	for _, o := range f.GetSelectedBy() {
		policies = append(policies, Origin(o))
	}
	why := "selected by " + strings.Join(policies, ", ")
	if f.GetHttp() != nil && f.GetReason() != "http-denied" && f.GetReason() != "http-ambiguous-path" {
		return why + "; refused whatever the rules say"
	}
	return why + ", and no rule allows it"
}

// Origin tells where a rule was written: kind, namespace/name, path, file:line.
func Origin(o *policyv1.Origin) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s ", o.GetKind())
	if o.GetNamespace() != "" {
		fmt.Fprintf(&b, "%s/", o.GetNamespace())
	}
	b.WriteString(o.GetName())
	if o.GetPath() != "" {
		fmt.Fprintf(&b, " %s", o.GetPath())
	}
	if o.GetFile() != "" {
		fmt.Fprintf(&b, " (%s:%d)", o.GetFile(), o.GetLine())
	}
	return b.String()
}

// End tells one end of a flow: a pod or a Service by its name, all else by address.
func End(p *flowv1.Peer, port uint32) string {
	name := Address(p.GetAddress())
	service, isService := serviceOf(p)
	switch {
	case p.GetPod() != "":
		name = p.GetNamespace() + "/" + p.GetPod()
	case isService:
		name = servicePrefix + service
	case p.GetEntity() != "":
		name += "(" + p.GetEntity() + ")"
	}
	if port == 0 {
		return name
	}
	if strings.Contains(name, ":") {
		return fmt.Sprintf("[%s]:%d", name, port)
	}
	return fmt.Sprintf("%s:%d", name, port)
}

// Address prints 4 or 16 bytes; IPv4 is unmapped.
func Address(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "?"
	}
	return a.Unmap().String()
}

// Direction in a word.
func Direction(d policyv1.Direction) string {
	switch d {
	case policyv1.Direction_DIRECTION_INGRESS:
		return "ingress"
	case policyv1.Direction_DIRECTION_EGRESS:
		return "egress"
	}
	return "?"
}

// Verdict in a word. What is not known is not called allowed.
func Verdict(v policyv1.Verdict) string {
	switch v {
	case policyv1.Verdict_VERDICT_DENY:
		return "DENY"
	case policyv1.Verdict_VERDICT_ALLOW:
		return "ALLOW"
	case policyv1.Verdict_VERDICT_HTTP:
		return "HTTP"
	case policyv1.Verdict_VERDICT_NOT_JUDGED:
		return "NOT-JUDGED"
	}
	return "?"
}

// Protocol by its IP protocol number.
func Protocol(p uint32) string {
	switch p {
	case 1:
		return "ICMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 58:
		return "ICMPv6"
	case 132:
		return "SCTP"
	}
	return fmt.Sprintf("protocol-%d", p)
}
