package proxynet

import bpf "weir.dev/weir/bpf/datapath"

// attach puts the programs in their places.
func (p *ProxyNet) attach() error {
	for _, a := range []struct {
		space        *space
		from, lookup string
	}{
		{p.in, bpf.FromProxyIn, bpf.SteerIn},
		{p.out, bpf.FromProxyOut, bpf.SteerOut},
	} {
		if err := p.cfg.Datapath.AttachTCX(a.from, a.space.name, a.space.ifindex); err != nil {
			return err
		}
		if err := a.space.do(func() error {
			return p.cfg.Datapath.AttachTCX(bpf.ProxyArrival, a.space.name, uint32(a.space.inIfindex))
		}); err != nil {
			return err
		}
		if err := p.cfg.Datapath.AttachNetNS(a.lookup, a.space.name, a.space.file); err != nil {
			return err
		}
	}
	return nil
}
