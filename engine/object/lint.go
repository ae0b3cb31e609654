package object

import (
	"fmt"
	"slices"

	"weir.dev/weir/engine/rule"
)

// Lint tells what a policy says that its author hardly means. It judges the one
// object; another object may change what the warnings are about.
func Lint(p *Policy) []string { return slices.Clone(p.Warnings) }

// lint is what can be seen of a decoded policy only.
func lint(p *Policy) []string {
	var out []string
	for _, part := range p.Parts() {
		if part.Semantics == SemanticsV1 {
			out = append(out, lintSources(part)...)
		}
		out = append(out, lintWidening(part)...)
	}
	return out
}

// lintSources: in v1 sources and ports are judged independently, so ports
// without any source are open to nobody.
func lintSources(p *Policy) []string {
	var first *PolicyRule
	for i, r := range p.Rules {
		switch {
		case r.Direction != rule.Ingress:
		case len(r.Peers) > 0:
			return nil
		case first == nil:
			first = &p.Rules[i]
		}
	}
	if first == nil {
		return nil
	}
	return []string{p.at(first.Path, "cilium.io/v1 asks for a source and none of this policy's rules has one: "+
		"nobody passes unless another cilium.io/v1 policy of the same pods has a fromEndpoints")}
}

// lintWidening: a rule without HTTP rules opens every request of a port to the
// peers that it shares with a rule that has HTTP rules. Not so in v1, where a
// port with HTTP rules keeps them.
func lintWidening(p *Policy) []string {
	if p.Semantics == SemanticsV1 {
		return nil
	}
	var out []string
	for _, narrow := range p.Rules {
		for _, pr := range narrow.Ports {
			if len(pr.HTTP) == 0 {
				continue
			}
			if wide := p.widens(narrow, pr); wide != "" {
				out = append(out, p.at(pr.Path, fmt.Sprintf("its HTTP rules restrict nobody: %s allows the same peers the port whole", wide)))
			}
		}
	}
	return out
}

// widens is the path of a rule that opens a port list to all peers of a rule.
func (p *Policy) widens(narrow PolicyRule, ports PortRule) string {
	for _, wide := range p.Rules {
		if wide.Direction != narrow.Direction || wide.Action != rule.Allow || !coversPeers(wide, narrow) {
			continue
		}
		if wide.AnyPort {
			return wide.Path
		}
		for _, w := range wide.Ports {
			if len(w.HTTP) == 0 && coversPorts(w, ports) {
				return w.Path
			}
		}
	}
	return ""
}

func coversPeers(wide, narrow PolicyRule) bool {
	if wide.AnyPeer || narrow.AnyPeer {
		return wide.AnyPeer
	}
	return !slices.ContainsFunc(narrow.Peers, func(n Peer) bool {
		return !slices.ContainsFunc(wide.Peers, func(w Peer) bool { return samePeer(w, n) })
	})
}

func samePeer(a, b Peer) bool {
	switch {
	case a.Labels != nil && b.Labels != nil:
		return a.Labels.Text == b.Labels.Text && slices.Equal(a.Labels.Namespaces, b.Labels.Namespaces)
	case a.Prefix != nil && b.Prefix != nil:
		return a.Prefix.Prefix == b.Prefix.Prefix && slices.Equal(a.Prefix.Except, b.Prefix.Except)
	}
	return len(a.Entities) > 0 && slices.Equal(a.Entities, b.Entities)
}

func coversPorts(wide, narrow PortRule) bool {
	return !slices.ContainsFunc(narrow.Ports, func(n Port) bool {
		return !slices.ContainsFunc(wide.Ports, func(w Port) bool {
			return w.Name == n.Name && w.Protocol == n.Protocol && w.Range.Protocol == n.Range.Protocol &&
				w.Range.Lo <= n.Range.Lo && n.Range.Hi <= w.Range.Hi
		})
	})
}

func (p *Policy) at(path, text string) string {
	if n := p.Lines[path]; n != 0 {
		return fmt.Sprintf("line %d: %s: %s", n, path, text)
	}
	return path + ": " + text
}
