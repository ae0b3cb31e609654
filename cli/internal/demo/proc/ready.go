package proc

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// readyEvery is how often a starting part is asked whether it is ready.
const readyEvery = 25 * time.Millisecond

// AwaitReady waits until the part answers /readyz on its unix socket with 200.
// It gives up when the process has ended or ctx has.
func AwaitReady(ctx context.Context, p *Process, socket string) error {
	client := &http.Client{
		Timeout: time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	said := "no answer yet"
	for {
		ok, answer := ready(ctx, client)
		if ok {
			return nil
		}
		if answer != "" {
			said = answer
		}
		select {
		case <-tick.C:
		case <-p.Ended():
			return fmt.Errorf("%s has ended (%s): see %s/log", p.spec.Name, p.Status().Detail, p.spec.Dir)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be ready: %w; it says: %s; see %s/log", p.spec.Name, ctx.Err(), said, p.spec.Dir)
		}
	}
}

func ready(ctx context.Context, client *http.Client) (bool, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://part/readyz?verbose", nil)
	if err != nil {
		return false, err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, "" // its socket is not there yet
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return false, err.Error()
	}
	return resp.StatusCode == http.StatusOK, strings.Join(strings.Fields(string(text)), " ")
}
