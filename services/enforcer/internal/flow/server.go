package flow

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flowv1 "weir.dev/weir/proto/weir/flow/v1"
)

// Server is the FlowService over a ring.
type Server struct {
	flowv1.UnimplementedFlowServiceServer
	Ring *Ring
}

// batch is how many flows are taken out of the ring at a time.
const batch = 256

// Observe sends flows that match every given filter, the newest last.
func (s Server) Observe(q *flowv1.ObserveRequest, stream grpc.ServerStreamingServer[flowv1.ObserveResponse]) error {
	if err := check(q); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	reader := s.Ring.Reader()
	if err := s.past(q, reader, stream); err != nil {
		return err
	}
	for q.GetFollow() {
		if err := reader.Wait(stream.Context()); err != nil {
			return nil //nolint:nilerr // the observer is gone
		}
		flows, lost := reader.Next(batch)
		if err := send(q, flows, lost, stream); err != nil {
			return err
		}
	}
	return nil
}

// past sends what the ring holds, or the last of what matches.
func (s Server) past(q *flowv1.ObserveRequest, reader *Reader, stream grpc.ServerStreamingServer[flowv1.ObserveResponse]) error {
	var matching []*flowv1.Flow
	for {
		flows, _ := reader.Next(batch)
		if len(flows) == 0 {
			break
		}
		for _, f := range flows {
			if Matches(q, f) {
				matching = append(matching, f)
			}
		}
	}
	if last := int(q.GetLast()); last > 0 && len(matching) > last || last == 0 && q.GetFollow() {
		matching = matching[len(matching)-last:]
	}
	return send(q, matching, 0, stream)
}

func send(q *flowv1.ObserveRequest, flows []*flowv1.Flow, lost uint64, stream grpc.ServerStreamingServer[flowv1.ObserveResponse]) error {
	if lost > 0 {
		if err := stream.Send(&flowv1.ObserveResponse{Response: &flowv1.ObserveResponse_Lost{Lost: lost}}); err != nil {
			return err
		}
	}
	for _, f := range flows {
		if !Matches(q, f) {
			continue
		}
		if err := stream.Send(&flowv1.ObserveResponse{Response: &flowv1.ObserveResponse_Flow{Flow: f}}); err != nil {
			return err
		}
	}
	return nil
}
