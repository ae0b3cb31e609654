package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir.dev/weir/internal/tlsconf"
)

// interceptors in order: metrics, logging, who may call, recovery innermost, so
// that a panic is counted and logged as the call that it failed.
func interceptors(log *slog.Logger, prom *grpcprom.ServerMetrics, callers []tlsconf.Role) ([]grpc.UnaryServerInterceptor, []grpc.StreamServerInterceptor) {
	logger := logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		log.Log(ctx, slog.Level(level), msg, fields...)
	})
	logOpts := []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(callLevel),
	}
	recoverOpt := recovery.WithRecoveryHandlerContext(func(_ context.Context, p any) error {
		log.Error("a call panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		return status.Error(codes.Internal, "internal error, see the service's log")
	})
	return []grpc.UnaryServerInterceptor{
			prom.UnaryServerInterceptor(),
			logging.UnaryServerInterceptor(logger, logOpts...),
			func(ctx context.Context, req any, i *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				if err := allow(ctx, i.FullMethod, callers); err != nil {
					return nil, err
				}
				return handler(ctx, req)
			},
			recovery.UnaryServerInterceptor(recoverOpt),
		}, []grpc.StreamServerInterceptor{
			prom.StreamServerInterceptor(),
			logging.StreamServerInterceptor(logger, logOpts...),
			func(srv any, str grpc.ServerStream, i *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				if err := allow(str.Context(), i.FullMethod, callers); err != nil {
					return err
				}
				return handler(srv, str)
			},
			recovery.StreamServerInterceptor(recoverOpt),
		}
}

// allow refuses callers without one of the roles, if any are named.
func allow(ctx context.Context, method string, roles []tlsconf.Role) error {
	if len(roles) == 0 || strings.HasPrefix(method, "/grpc.") {
		return nil
	}
	n, ok := tlsconf.FromContext(ctx)
	if !ok || !slices.Contains(roles, n.Role) {
		return status.Errorf(codes.PermissionDenied, "%s may not do this: call as %v", n, roles)
	}
	return nil
}

// callLevel: what went well is for debugging, what a caller did wrong is a
// change of state worth knowing, what we did wrong wants someone to act.
func callLevel(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.NotFound:
		return logging.LevelDebug
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return logging.LevelError
	case codes.PermissionDenied, codes.Unauthenticated:
		return logging.LevelWarn
	default:
		return logging.LevelInfo
	}
}
