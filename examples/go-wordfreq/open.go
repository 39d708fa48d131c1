package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"
)

// Go asks for the right to change a file's size even where it opens it for reading, and WasmEdge opens
// every file for writing to which that right is asked. So os.Open fails with "read-only file system"
// on a ConfigMap, a Secret or any read-only volume, and with "permission denied" on a file that the
// pod's user may only read. This asks for reading alone. Copy this file.

//go:wasmimport wasi_snapshot_preview1 path_open
func pathOpen(dir, lookup uint32, path unsafe.Pointer, size, flags uint32, rights, inherited uint64, fdFlags uint32, fd unsafe.Pointer) uint32

const (
	followSymlinks = 1
	rightRead      = 1 << 1
	rightSeek      = 1 << 2
	rightStat      = 1 << 21
)

// open opens a file for reading.
func open(name string) (*os.File, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	// Directories are not affected. WASI wants a path relative to one.
	root, err := os.Open("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	path := []byte("." + absolute)
	var fd uint32
	errno := pathOpen(uint32(root.Fd()), followSymlinks, unsafe.Pointer(&path[0]), uint32(len(path)), 0, rightRead|rightSeek|rightStat, 0, 0, unsafe.Pointer(&fd))
	runtime.KeepAlive(path)
	if errno != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.Errno(errno)}
	}
	return os.NewFile(uintptr(fd), name), nil
}
