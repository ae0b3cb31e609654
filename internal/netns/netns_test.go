package netns

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if IsHolder() {
		os.Exit(Hold())
	}
	goleak.VerifyTestMain(m)
}

// space is a space that is gone after the test, with everything in it.
func space(t *testing.T, owner string, setup Setup) *Space {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), exe, []string{Mark + "=" + owner}, setup)
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

func TestSpaceHasItsOwnNetworkMountsAndName(t *testing.T) {
	hosts := t.TempDir() + "/hosts"
	if err := os.WriteFile(hosts, []byte("10.9.9.9 somebody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := space(t, t.Name(), Setup{
		Hostname: "pod-1", Mount: true, Sysfs: true, BPFFS: "/sys/fs/bpf",
		Binds:   map[string]string{"/etc/hosts": hosts},
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
	})
	var out bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/bin/sh", Stdout: &out, Stderr: &out,
		Args: []string{"sh", "-c", "cat /proc/sys/kernel/hostname /etc/hosts /proc/sys/net/ipv4/ip_forward; grep -c ' /sys/fs/bpf bpf ' /proc/mounts; tail -n +3 /proc/net/dev | wc -l; ls /sys/class/net"},
	}
	if err := s.StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if got, want := strings.Fields(out.String()), "pod-1 10.9.9.9 somebody 1 1 1 lo"; strings.Join(got, " ") != want {
		t.Errorf("in the space: %q, want %q", got, want)
	}
	for _, path := range []string{"/etc/hosts", "/proc/mounts"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "somebody") || strings.Contains(string(text), hosts) {
			t.Errorf("%s of the machine was touched:\n%s", path, text)
		}
	}
}

func TestTwoSpacesTalkByAPair(t *testing.T) {
	a, b := space(t, t.Name(), Setup{}), space(t, t.Name(), Setup{})
	if err := Pair(End{a, "left"}, End{b, "right"}, 1500); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		s    *Space
		link string
		host string
	}{{a, "left", "1"}, {b, "right", "2"}} {
		if err := c.s.Address(c.link, netip.MustParsePrefix("10.9.0."+c.host+"/24"), netip.MustParsePrefix("fd00:9::"+c.host+"/64")); err != nil {
			t.Fatal(err)
		}
		if err := c.s.Up("lo", c.link); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Routes(Route{To: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.MustParseAddr("10.9.0.2"), Link: "left"}); err != nil {
		t.Fatal(err)
	}
	if mac, err := b.MAC("right"); err != nil || len(mac) != 6 {
		t.Errorf("MAC: %v, %v", mac, err)
	}
	if err := a.Remove("left"); err != nil {
		t.Fatal(err)
	}
	if err := a.Remove("left"); err != nil {
		t.Errorf("removing a link twice: %v", err)
	}
}

func TestSetupErrorIsTold(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), exe, []string{Mark + "=" + t.Name()}, Setup{Sysctls: map[string]string{"net.ipv4.nothing": "1"}})
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.nothing") {
		t.Errorf("Start: %v", err)
	}
}

func TestKillMarkedEndsGrandchildrenToo(t *testing.T) {
	s := space(t, t.Name(), Setup{})
	cmd := &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 60 & sleep 60"}, Env: []string{Mark + "=" + t.Name(), "PATH=/bin:/usr/bin"}}
	if err := s.StartCommand(cmd); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := KillMarked(ctx, t.Name()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the shell ended by itself")
	}
	if pids, err := Marked(t.Name()); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
}
