package source

import (
	"io/fs"
	"syscall"
)

// inode tells a file that replaced another from that other.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
