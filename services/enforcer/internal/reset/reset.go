// Package reset cuts connections that the policy in force forbids. The
// programs drop their packets already; without a reset both ends would wait for
// long, and an idle one would never learn of it.
//
// It is called after the word moved: walks the TCP flows that conntrack holds,
// judges by the realized state those that have not been judged under the new
// word yet, and has the kernel destroy the local sockets of the forbidden ones.
// The reset that this sends passes the policy once.
//
// Peers outside of this node hear of it by that reset. It may import
// engine/rule, logkey, plan, datapath and x/sys.
package reset

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/services/enforcer/internal/datapath"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// Flows is what conntrack holds. *datapath.Datapath is one.
type Flows interface {
	Word() uint64
	TCPFlows(ctx context.Context, f func(datapath.Flow)) error
}

// Realized is the state in force. *plan.Planner is one.
type Realized interface{ Realized() plan.State }

// Config says where sockets are.
type Config struct {
	// Netns is the path of an endpoint's network namespace; empty: unknown.
	Netns func(endpoint uint32) string
	// ProxyIn and ProxyOut are the paths of weir-in and weir-out; empty: none.
	ProxyIn, ProxyOut string
}

// Cutter cuts connections. It is for the goroutine that writes the state.
type Cutter struct {
	cfg      Config
	flows    Flows
	realized Realized
	log      *slog.Logger
}

// New makes a Cutter.
func New(cfg Config, flows Flows, realized Realized, log *slog.Logger) *Cutter {
	return &Cutter{cfg, flows, realized, log}
}

// socket is one end of a connection, as the process that has it sees it.
type socket struct{ local, remote netip.AddrPort }

// cut is a socket to destroy.
type cut struct {
	netns string
	socket
}

// Cut destroys the sockets of forbidden connections. A socket or a namespace
// that is gone is no error.
func (c *Cutter) Cut(ctx context.Context) error {
	cuts, err := c.find(ctx)
	if err != nil {
		return err
	}
	byNetns := map[string]*destroyer{}
	defer func() {
		for _, d := range byNetns {
			d.close()
		}
	}()
	var errs []error
	n := 0
	for _, x := range cuts { // in this order: see cutsOf
		d, open := byNetns[x.netns]
		if !open {
			d, err = newDestroyer(x.netns)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			byNetns[x.netns] = d
		}
		done, err := d.destroy(x.socket)
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			n++
		}
	}
	if n > 0 {
		c.log.Info("forbidden connections cut", "sockets", n, logkey.Word, c.flows.Word())
	}
	return errors.Join(errs...)
}

// find lists the sockets of connections that are forbidden now.
func (c *Cutter) find(ctx context.Context) ([]cut, error) {
	word, state := c.flows.Word(), c.realized.Realized()
	judge := plan.NewJudge(state)
	var cuts []cut
	err := c.flows.TCPFlows(ctx, func(f datapath.Flow) {
		for _, ingress := range []bool{false, true} {
			s := f.Egress
			if ingress {
				s = f.Ingress
			}
			if s.Ifindex == 0 || s.Word == word || state.Endpoints[s.Ifindex].ID != s.Endpoint {
				continue
			}
			if forbidden(judge, f, s.Ifindex, ingress) {
				cuts = append(cuts, c.cutsOf(f, s.Endpoint, ingress)...)
			}
		}
	})
	return cuts, err
}

// forbidden tells whether one side's judgement of a flow turned against it: a
// policy denies it, or wants to read a connection that does not go through the
// proxy. What is merely pending, or lost its backends, may come back.
func forbidden(judge *plan.Judge, f datapath.Flow, ifindex uint32, ingress bool) bool {
	p := plan.Packet{
		Ifindex: ifindex, Ingress: ingress, Protocol: rule.TCP, Port: f.Responder().Port(),
		Own: f.Initiator().Addr(), Peer: f.Responder().Addr(),
	}
	proxied := f.ProxiedOut
	if ingress {
		p.Own, p.Peer = p.Peer, p.Own
		proxied = f.ProxiedIn
	}
	if ingress && judge.Flags(p.Peer)&plan.FlagHost != 0 {
		// The client may stand behind this node's address: only the kernel
		// knows, and marks what it denied.
		return f.Denied
	}
	switch j := judge.Judge(p); {
	case j.Verdict >= rule.FirstRuleSet:
		return !proxied
	case j.Verdict == rule.Denied:
		return j.Reason == plan.ReasonNoRule || j.Reason == plan.ReasonBackendsDiffer
	}
	return false
}

// cutsOf lists the sockets of a flow on this node: those of the proxy first, for
// their resets pass only as long as conntrack holds the flow, and the pod's own
// uses that up. Of those the client's leg is the first: as soon as one is gone
// the proxy closes the other.
func (c *Cutter) cutsOf(f datapath.Flow, endpoint uint32, ingress bool) []cut {
	client := socket{local: f.Initiator(), remote: f.Responder()}
	server := socket{local: f.Responder(), remote: f.Initiator()}
	var cuts []cut
	proxied, netns, own := f.ProxiedOut, c.cfg.ProxyOut, client
	if ingress {
		proxied, netns, own = f.ProxiedIn, c.cfg.ProxyIn, server
	}
	if proxied && netns != "" {
		cuts = append(cuts, cut{netns, server}, cut{netns, client})
	}
	if netns := c.cfg.Netns(endpoint); netns != "" {
		cuts = append(cuts, cut{netns, own})
	}
	return cuts
}
