// Package version names this build. It imports nothing.
package version

// Version of Weir. Release builds set it with
// -ldflags "-X weir.dev/weir/internal/version.Version=v0.1.0".
var Version = "v0.1.0-dev"
