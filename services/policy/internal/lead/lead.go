// Package lead is what only the replica that holds the lease does: it copies
// the policies of the source into the state log, and begins another generation
// when the log has lost its tail.
package lead

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"weir.dev/weir/internal/logkey"
	kit "weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/source"
	"weir.dev/weir/services/policy/internal/status"
)

const (
	// lookEvery is how often all is compared although nothing changed.
	lookEvery  = 10 * time.Second
	watchEvery = time.Second
	retry      = 500 * time.Millisecond
	// lostAfter is how long a node must be ahead of the log: a replica may lag.
	lostAfter = 4 * time.Second
)

// Leader copies. All its exported fields are set; Lead is called by one
// goroutine at a time.
type Leader struct {
	Source *kit.Store
	View   *statelog.View
	Writer *statelog.Writer
	Nodes  *status.Nodes
	Log    *slog.Logger

	compared map[statelog.Key]comparison
	marked   uint64 // generation that is known to have all policies
}

// comparison is an object that was found, or made, to be what the log has.
type comparison struct {
	json *byte // of the object's JSON, which is never written to
	file string
	line int
	at   catalog.Position // of the log's entry
}

// Lead copies until ctx ends.
func (l *Leader) Lead(ctx context.Context) error {
	if err := l.Writer.EnsureGeneration(ctx, time.Now()); err != nil {
		return err
	}
	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	look := time.NewTimer(lookEvery)
	defer look.Stop()
	l.compared = map[statelog.Key]comparison{}
	var ahead time.Time
	var copied uint64 // generation of the last copy
	var sourceChanged, viewChanged <-chan struct{}
	for copying := true; ; {
		var err error
		if copying {
			// Taken before the copy, and kept until the next: no change is missed.
			sourceChanged, viewChanged = l.Source.Changed(), l.View.Changed()
			if l.View.Ready() == nil {
				viewChanged = nil // what others write is not ours
			}
			copied = l.View.Position().Generation
			err = l.copy(ctx)
			look.Reset(lookEvery)
		}
		if err == nil {
			ahead, err = l.lostTail(ctx, ahead)
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.Log.Warn("not all policies of the source are in the log", logkey.Error, err)
			look.Reset(retry)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sourceChanged:
			copying = true
		case <-viewChanged:
			copying = true
		case <-look.C:
			copying = true
		case <-watch.C:
			// A log that begins anew has no policies, and allows everything.
			copying = l.View.Position().Generation != copied
		}
	}
}

// copy writes what differs, and removes what is known to be gone. What fails
// does not keep the rest from being written.
func (l *Leader) copy(ctx context.Context) error {
	if l.View.Ready() != nil {
		return nil
	}
	// Asked before the list: one that is complete only afterwards lacks something.
	generation, synced := l.View.Position().Generation, len(l.Source.Unsynced()) == 0
	var errs []error
	now := time.Now()
	for _, kind := range source.Kinds() {
		for _, o := range l.Source.List(kind) {
			errs = append(errs, l.put(ctx, o, now))
		}
	}
	if synced && errors.Join(errs...) == nil {
		errs = append(errs, l.mark(ctx, generation))
	}
	for _, k := range l.gone() {
		err := l.Writer.Delete(ctx, k)
		if err == nil {
			l.Log.Info("policy removed from the log", logkey.Policy, k)
			delete(l.compared, k)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mark writes down that this generation has all policies of the source. Until
// then no replica serves it.
func (l *Leader) mark(ctx context.Context, generation uint64) error {
	if generation == 0 || generation == l.marked {
		return nil
	}
	if err := l.Writer.PoliciesCopied(ctx, generation); err != nil {
		return err
	}
	l.marked = generation
	return nil
}

// first tells one JSON from another that was read at another time.
func first(json []byte) *byte {
	if len(json) == 0 {
		return nil
	}
	return &json[0]
}

// put writes an object unless the log says the same.
func (l *Leader) put(ctx context.Context, o kit.Object, now time.Time) error {
	key := statelog.PolicyKey(o.Kind, o.Namespace, o.Name)
	e, there := l.View.Get(key)
	at := catalog.Position{Generation: l.View.Position().Generation, Revision: e.Revision}
	c := comparison{first(o.JSON), o.File, o.Line, at}
	if there && l.compared[key] == c {
		return nil
	}
	entry, err := source.Entry(o, now)
	if err != nil {
		return err
	}
	if there && statelog.Same(e.Value, entry) {
		l.compared[key] = c
		return nil
	}
	revision, outcome, err := l.Writer.Put(ctx, key, entry)
	if err == nil && outcome == statelog.Written {
		l.Log.Info("policy written to the log", logkey.Policy, key, logkey.Revision, revision,
			logkey.File, entry.GetFile(), logkey.Line, entry.GetLine())
	}
	return err
}

// gone are the policies of the log that the source is known not to have.
func (l *Leader) gone() []statelog.Key {
	var out []statelog.Key
	l.View.Each(statelog.Policy, func(k statelog.Key, e statelog.Entry) bool {
		kind, namespace, name := k.Policy()
		entry, ok := e.Value.(*policyv1.PolicyEntry)
		if ok && l.Source.Gone(kit.Key{Kind: kind, Namespace: namespace, Name: name}, entry.GetFile()) {
			out = append(out, k)
		}
		return true
	})
	return out
}

// lostTail begins another generation if this replica has seen more of the log
// than there is, or if for a while more than half of the live nodes have had in
// force what it has not (one that lies cannot cause it): it came back older than
// it was, or was made anew by a clock that is behind. since is when the nodes
// were seen to be ahead first; zero: they are not.
func (l *Leader) lostTail(ctx context.Context, since time.Time) (time.Time, error) {
	at := l.View.Position()
	pos := catalog.Position{Generation: at.Generation, Revision: at.Revision}
	most, ahead := majority(l.Nodes.All())
	ahead = ahead && pos.Before(most)
	switch {
	case l.View.Ready() != nil:
		return time.Time{}, nil
	case l.View.LostTail(): // sure
	case !ahead:
		return time.Time{}, nil
	case since.IsZero():
		return time.Now(), nil
	case time.Since(since) < lostAfter:
		return since, nil
	}
	l.Log.Error("the state log has lost its tail; beginning another generation",
		logkey.Generation, pos.Generation, logkey.Revision, pos.Revision)
	return time.Time{}, l.Writer.NewGeneration(ctx, time.Now(), most.Generation)
}

// majority is the latest position that more than half of the live nodes have in
// force, or have behind them.
func majority(nodes []status.Node) (catalog.Position, bool) {
	var live []catalog.Position
	for _, n := range nodes {
		if n.Live {
			live = append(live, n.Pos)
		}
	}
	if len(live) == 0 {
		return catalog.Position{}, false
	}
	slices.SortFunc(live, func(a, b catalog.Position) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Revision, b.Revision))
	})
	return live[(len(live)-1)/2], true
}
