package parent

import (
	"log/slog"
	"testing"

	"weir.dev/weir/internal/handover"
)

// A worker that breaks the contract is not served any more, and is ended: it
// would hold the node's connections without a socket to serve them with.
func TestWorkerThatAsksForAnythingElseMustEnd(t *testing.T) {
	ours, file, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	worker, err := handover.FromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := &Parent{log: slog.New(slog.DiscardHandler), worker: ours, retired: make(chan struct{})}
	if err := worker.Send(handover.Message{Kind: handover.Retiring}); err != nil {
		t.Fatal(err)
	}
	if err := p.serveWorker(); err == nil {
		t.Error("it is served")
	}
	select {
	case <-p.retired:
	default:
		t.Error("it is left to live")
	}
	for _, c := range []*handover.Conn{ours, worker} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
