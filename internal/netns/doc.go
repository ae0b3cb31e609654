// Package netns makes the namespaces that play nodes and pods: each is held by
// a process of its own (like a pod's pause container), so nothing of it has a
// name or a mount on the machine and it is gone when its last process is. Links,
// addresses and routes are made by netlink; no command is called.
//
// A program that uses Start must call Hold first thing in main when IsHolder
// says so. Functions may be called from any goroutine. The package imports
// netlink, x/sys and the standard library.
package netns
