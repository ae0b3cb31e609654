package object

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"weir.dev/weir/engine/rule"
)

// portRules decodes toPorts and icmps of a cilium.io rule.
func (c *ciliumDecoder) portRules(out *PolicyRule, toPorts, icmps field) {
	ports, icmp := toPorts.list(maxRules), icmps.list(maxRules)
	if len(ports) > 0 && len(icmp) > 0 {
		icmps.fail("cannot be together with toPorts in one rule: make two rules of it")
	}
	for _, e := range ports {
		out.AnyPort = false
		out.Ports = append(out.Ports, c.portRule(e, out.Direction, out.Action))
	}
	for _, e := range icmp {
		out.AnyPort = false
		out.Ports = append(out.Ports, c.icmp(e))
	}
}

func (c *ciliumDecoder) portRule(f field, dir rule.Direction, action rule.Action) PortRule {
	out := PortRule{Path: f.path}
	m := f.members([]string{"ports", "rules"}, map[string]string{
		"originatingTLS": "TLS is not supported: remove the field",
		"terminatingTLS": "TLS is not supported: remove the field",
		"serverNames":    "TLS server names are not supported: remove the field",
		"listener":       "listeners of other proxies are not supported: remove the field",
	})
	if action == rule.Deny && m["rules"].present() {
		m["rules"].fail("a deny rule has no HTTP rules: deny the port, or allow what you want with HTTP rules")
	}
	rm := m["rules"].members([]string{"http"}, map[string]string{
		"dns":     "rules on DNS are not supported yet: remove the field",
		"kafka":   "rules on Kafka are not supported: remove the field",
		"l7proto": "rules of other proxies are not supported: remove the field",
		"l7":      "rules of other proxies are not supported: remove the field",
	})
	for _, h := range rm["http"].list(maxHTTP) {
		out.HTTP = append(out.HTTP, c.http(h))
	}
	if len(m["ports"].list(maxPorts)) == 0 {
		f.warn("has no ports and matches nothing: leave toPorts out to mean every port")
	}
	for _, p := range m["ports"].list(maxPorts) {
		out.Ports = append(out.Ports, c.port(p, dir, len(out.HTTP) > 0)...)
	}
	return out
}

// port decodes a port of toPorts. With HTTP rules it must be one of TCP; in v1
// the protocol may be absent then and means TCP.
func (c *ciliumDecoder) port(f field, dir rule.Direction, http bool) []Port {
	m := f.members([]string{"port", "endPort", "protocol"}, nil)
	if !m["port"].present() {
		f.fail("port is required: \"0\" means every port")
		return nil
	}
	protocols, ok := c.protocols(m["protocol"], http)
	if !ok {
		return nil
	}
	text := m["port"].str()
	if text == "" {
		m["port"].fail("must be a number or a name")
		return nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return c.namedPort(m, text, protocols, dir)
	}
	if n > 65535 {
		m["port"].fail("port %s is beyond 65535", text)
		return nil
	}
	if len(text) > 1 && text[0] == '0' {
		m["port"].fail("port %s begins with 0, which some read as octal: write %d", text, n)
		return nil
	}
	if n == 0 && http {
		m["port"].fail("HTTP rules need one port, not all")
		return nil
	}
	r := rule.PortRange{Lo: uint16(n), Hi: uint16(n)}
	if n == 0 {
		r.Hi = 65535
	}
	// An endPort below port means the single port, as in Cilium.
	if end, ok := m["endPort"].integer(0, 65535); ok && n != 0 {
		if end != 0 && end < int(n) {
			m["endPort"].warn("is below port and means nothing: the rule is for port %s alone", text)
		}
		r.Hi = max(r.Lo, uint16(end))
	}
	var out []Port
	for _, p := range protocols {
		r.Protocol = p
		out = append(out, Port{Range: r})
	}
	return out
}

// namedPort is a port by its name in the pod that is reached. Names are matched
// in lower case.
func (c *ciliumDecoder) namedPort(m map[string]field, name string, protocols []uint8, dir rule.Direction) []Port {
	name = strings.ToLower(name)
	if errs := validation.IsValidPortName(name); len(errs) > 0 {
		m["port"].fail("port %q is neither a number nor a port's name: %s", name, errs[0])
		return nil
	}
	// As the API says.
	if m["endPort"].present() {
		m["endPort"].warn("is ignored, since port is a name")
	}
	if c.sem == SemanticsV1 && dir == rule.Egress {
		m["port"].unsupported("egress of cilium.io/v1 has no named ports: write the port's number")
		return nil
	}
	if len(protocols) > 1 {
		return []Port{{Name: name}}
	}
	return []Port{{Name: name, Protocol: protocols[0]}}
}

func (c *ciliumDecoder) protocols(f field, http bool) ([]uint8, bool) {
	var out []uint8
	switch name := strings.ToUpper(f.str()); name {
	case "TCP":
		out = []uint8{rule.TCP}
	case "UDP":
		out = []uint8{rule.UDP}
	case "SCTP":
		out = []uint8{rule.SCTP}
	case "ANY", "":
		out = []uint8{rule.TCP, rule.UDP, rule.SCTP}
		if c.sem == SemanticsV1 {
			out = out[:2]
			if http {
				out = out[:1]
			}
		}
	case "VRRP", "IGMP":
		f.unsupported("protocol %s is not supported: it may be TCP, UDP, SCTP or ANY", name)
		return nil, false
	case "ICMP", "ICMPV6":
		f.fail("%s has no ports: use icmps", name)
		return nil, false
	default:
		f.fail("protocol %q is none of TCP, UDP, SCTP, ANY", name)
		return nil, false
	}
	if http && !slices.Equal(out, []uint8{rule.TCP}) {
		f.fail("HTTP rules are for TCP only: write protocol: TCP")
		return nil, false
	}
	return out, true
}

// icmpTypes by the names that cilium.io has for them, by family.
var icmpTypes = map[uint8]map[string]int{
	rule.ICMP: {"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
		"RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13,
		"TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43},
	rule.ICMPv6: {"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
		"EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131,
		"MulticastListenerDone": 132, "RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135,
		"NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138,
		"ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
		"InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
		"HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
		"MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
		"DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161},
}

// icmpType reads a type by its name or number.
func icmpType(protocol uint8, name string) (int, bool) {
	if n, ok := icmpTypes[protocol][name]; ok {
		return n, true
	}
	n, err := strconv.ParseUint(name, 10, 8)
	return int(n), err == nil
}

func (c *ciliumDecoder) icmp(f field) PortRule {
	out := PortRule{Path: f.path}
	m := f.members([]string{"fields"}, nil)
	for _, e := range m["fields"].list(maxPorts) {
		em := e.members([]string{"type", "family"}, nil)
		proto := rule.ICMP
		switch name := em["family"].str(); name {
		case "", "IPv4":
		case "IPv6":
			proto = rule.ICMPv6
		default:
			em["family"].fail("family %q is neither IPv4 nor IPv6", name)
			continue
		}
		if !em["type"].present() {
			e.fail("type is required")
			continue
		}
		n, ok := 0, false
		if name, isName := em["type"].v.(string); isName {
			if n, ok = icmpType(proto, name); !ok {
				em["type"].fail("ICMP type %q is unknown: write its number", name)
			}
		} else {
			n, ok = em["type"].integer(0, 255)
		}
		if ok {
			out.Ports = append(out.Ports, Port{Range: rule.PortRange{Protocol: proto, Lo: uint16(n), Hi: uint16(n)}})
		}
	}
	return out
}

// headerName is a token of RFC 9110.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (c *ciliumDecoder) http(f field) rule.HTTPRule {
	m := f.members([]string{"method", "path", "host", "headers", "headerMatches"}, nil)
	out := rule.HTTPRule{
		Method: m["method"].pattern(),
		Path:   m["path"].pattern(),
		Host:   m["host"].pattern(),
		Origin: c.origin,
	}
	out.Origin.Path = f.path
	if n := f.r.line(f.path); n != 0 {
		out.Origin.Line = n
	}
	for _, h := range m["headers"].list(maxHTTP) {
		// "Name: value" asks for the value; whatever has no blank asks for a
		// header of that very name, also "Name:value", as in Cilium.
		name, value, ok := strings.Cut(h.str(), " ")
		hr := rule.HeaderRule{Name: strings.ToLower(name)}
		if !ok && strings.Contains(strings.TrimSuffix(name, ":"), ":") {
			h.warn("asks for a header of the name %q, which no request has: write a blank after the colon", name)
		}
		if ok {
			hr = rule.HeaderRule{Name: strings.ToLower(strings.TrimRight(name, ":")), Value: &value}
		}
		if hr.Name == "" {
			h.fail("must be \"Name\" or \"Name: value\"")
		}
		out.Headers = append(out.Headers, hr)
	}
	for _, h := range m["headerMatches"].list(maxHTTP) {
		hm := h.members([]string{"name", "value"}, map[string]string{
			"mismatch": "changing or logging headers is not supported: without mismatch the request is refused",
			"secret":   "values from Secrets are not supported: write value",
		})
		hr := rule.HeaderRule{Name: strings.ToLower(hm["name"].str())}
		if v := hm["value"].str(); v != "" {
			hr.Value = &v
		}
		if !headerName.MatchString(hr.Name) {
			h.fail("name is required and must be a header's name")
		}
		out.Headers = append(out.Headers, hr)
	}
	slices.SortFunc(out.Headers, func(a, b rule.HeaderRule) int {
		return cmp.Or(cmpString(a.Name, b.Name), cmpString(deref(a.Value), deref(b.Value)))
	})
	return out
}

func cmpString(a, b string) int { return strings.Compare(a, b) }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// pattern is a regular expression for the whole value; nil if absent or empty,
// which is no condition.
func (f field) pattern() *string {
	s := f.str()
	if s == "" {
		return nil
	}
	if len(s) > maxText {
		f.fail("regular expression has %d bytes, more than %d", len(s), maxText)
		return nil
	}
	// Alone, so that "a)|(b" does not pass; and as it will be used.
	for _, e := range []string{s, "^(?:" + s + ")$"} {
		if _, err := regexp.Compile(e); err != nil {
			f.fail("%v: RE2 syntax is wanted", err)
			return nil
		}
	}
	return &s
}
