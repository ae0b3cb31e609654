package svcnat

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"weir.dev/weir/cli/internal/demo/controller"
	"weir.dev/weir/internal/netns"
)

func TestMain(m *testing.M) {
	if netns.IsHolder() {
		os.Exit(netns.Hold())
	}
	os.Exit(m.Run())
}

// spaces are a client, a node and a server, in a row. The server has two
// addresses of each family.
func spaces(t *testing.T) (client, node, server *netns.Space) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	space := func(sysctls map[string]string) *netns.Space {
		s, err := netns.Start(t.Context(), exe, nil, netns.Setup{Sysctls: sysctls})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	// Addresses are usable at once.
	noDAD := map[string]string{"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}
	client, server = space(noDAD), space(noDAD)
	node = space(map[string]string{
		"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0",
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// A veth whose ends have the same number in their namespaces is ready a second
	// later: the kernel takes it for a link without a peer.
	must(node.Bridge("first"))
	must(netns.Pair(netns.End{Space: client, Name: "up"}, netns.End{Space: node, Name: "left"}, 1500))
	must(netns.Pair(netns.End{Space: server, Name: "up"}, netns.End{Space: node, Name: "right"}, 1500))
	must(client.Address("up", netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd00:1::2/64")))
	must(node.Address("left", netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("fd00:1::1/64")))
	must(node.Address("right", netip.MustParsePrefix("10.2.0.1/24"), netip.MustParsePrefix("fd00:2::1/64")))
	must(server.Address("up", netip.MustParsePrefix("10.2.0.2/24"), netip.MustParsePrefix("10.2.0.3/24"),
		netip.MustParsePrefix("fd00:2::2/64"), netip.MustParsePrefix("fd00:2::3/64")))
	for _, s := range []*netns.Space{client, server} {
		must(s.Up("lo", "up"))
	}
	must(node.Up("lo", "left", "right"))
	for _, c := range []struct {
		s      *netns.Space
		v4, v6 string
	}{{client, "10.1.0.1", "fd00:1::1"}, {server, "10.2.0.1", "fd00:2::1"}} {
		must(c.s.Routes(
			netns.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr(c.v4), Link: "up"},
			netns.Route{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr(c.v6), Link: "up"}))
	}
	return client, node, server
}

func TestAServiceLeadsToEachBackendAndKeepsTheSource(t *testing.T) {
	client, node, server := spaces(t)
	asked := make(chan string, 64)
	var lis net.Listener
	if err := server.Do(func() (err error) {
		lis, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := lis.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.WriteString(c, c.LocalAddr().(*net.TCPAddr).IP.String())
			asked <- c.RemoteAddr().(*net.TCPAddr).IP.String()
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = lis.Close(); <-done })

	ask := func(addr string, limit time.Duration) (string, error) {
		var c net.Conn
		if err := client.Do(func() (err error) {
			d := net.Dialer{Timeout: limit}
			c, err = d.DialContext(t.Context(), "tcp", addr)
			return err
		}); err != nil {
			return "", err
		}
		defer c.Close()
		who, err := io.ReadAll(c)
		return string(who), err
	}
	backends := func(ips ...string) (out []controller.Backend) {
		for _, ip := range ips {
			out = append(out, controller.Backend{Address: netip.MustParseAddr(ip), Port: 8080})
		}
		return out
	}
	service := func(ip string, ips ...string) controller.Translation {
		return controller.Translation{Address: netip.MustParseAddr(ip), Protocol: "TCP", Port: 80, Backends: backends(ips...)}
	}
	if err := Apply(node, []controller.Translation{
		service("10.96.0.2", "10.2.0.2", "10.2.0.3"), service("fd00:96::2", "fd00:2::2", "fd00:2::3"), service("10.96.0.3"),
	}); err != nil {
		t.Fatal(err)
	}
	for addr, source := range map[string]string{"10.96.0.2:80": "10.1.0.2", "[fd00:96::2]:80": "fd00:1::2"} {
		seen := map[string]bool{}
		for range 64 {
			who, err := ask(addr, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := <-asked; got != source {
				t.Fatalf("%s: the server sees %s, want %s", addr, got, source)
			}
			if seen[who] = true; len(seen) == 2 {
				break
			}
		}
		if len(seen) != 2 {
			t.Errorf("%s: 64 connections reached %v only", addr, seen)
		}
	}
	for _, addr := range []string{"10.96.0.2:81", "10.96.0.3:80"} {
		if who, err := ask(addr, time.Second); err == nil {
			t.Errorf("%s reached %s", addr, who)
		}
	}
	// One backend less, at once; then none at all.
	if err := Apply(node, []controller.Translation{service("10.96.0.2", "10.2.0.3")}); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		if who, err := ask("10.96.0.2:80", 10*time.Second); err != nil || who != "10.2.0.3" {
			t.Fatalf("one backend: %q, %v", who, err)
		}
		<-asked
	}
	if err := Apply(node, nil); err != nil {
		t.Fatal(err)
	}
	if who, err := ask("10.96.0.2:80", time.Second); err == nil {
		t.Errorf("no Service: reached %s", who)
	}
}
