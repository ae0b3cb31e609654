package tests

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
)

// relay is the least that a proxy can be: whatever is steered into its namespace
// goes on to where it was meant, from where it came.
type relay struct {
	ns    *namespace
	conns atomic.Int64
}

// startRelay listens in a proxy namespace and is given its connections.
func (n *node) startRelay(t testing.TB, ns *namespace, listeners string) *relay {
	t.Helper()
	r := &relay{ns: ns}
	for key, a := range []string{"127.0.0.1:15001", "[::1]:15001"} {
		l := ns.listen(t, netip.MustParseAddrPort(a), true)
		rc, err := l.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := rc.Control(func(fd uintptr) { n.put(listeners, uint32(key), uint64(fd)) }); err != nil {
			t.Fatal(err)
		}
		go r.serve(l)
	}
	return r
}

func (r *relay) serve(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		r.conns.Add(1)
		go r.relay(c)
	}
}

func (r *relay) relay(client *net.TCPConn) {
	defer client.Close()
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort()
	to := client.LocalAddr().(*net.TCPAddr).AddrPort()
	app, err := r.ns.dial(from, to, true, patience)
	if err != nil {
		client.SetLinger(0)
		return
	}
	defer app.Close()
	done := make(chan struct{})
	go func() {
		io.Copy(app, client)
		app.CloseWrite()
		close(done)
	}()
	io.Copy(client, app)
	client.CloseWrite()
	<-done
}

// serveWhoami answers every line with the client's address and the line.
func (ns *namespace) serveWhoami(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	l := ns.listen(t, addr, false)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					io.WriteString(c, c.RemoteAddr().String()+" "+string(buf[:n]))
				}
			}()
		}
	}()
}
