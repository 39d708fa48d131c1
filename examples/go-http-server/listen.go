package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Go's library for GOOS=wasip1 accepts, reads and writes sockets that somebody else has opened, and
// opens none: net.Listen is a listener inside the program. WasmEdge opens them, by imports beside
// WASI's own. Copy this file.

//go:wasmimport wasi_snapshot_preview1 sock_open
func sockOpen(family, kind uint32, fd unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 sock_setsockopt
func sockSetOption(fd, level, option uint32, value unsafe.Pointer, size uint32) uint32

//go:wasmimport wasi_snapshot_preview1 sock_bind
func sockBind(fd uint32, address unsafe.Pointer, port uint32) uint32

//go:wasmimport wasi_snapshot_preview1 sock_listen
func sockListen(fd, backlog uint32) uint32

// In WasmEdge's numbers.
const (
	familyIPv4         = 1
	typeStream         = 2
	levelSocket        = 0
	optionReuseAddress = 0
	backlog            = 128
)

// listen returns a TCP listener on all IPv4 addresses, as net.Listen does elsewhere.
func listen(port uint16) (net.Listener, error) {
	var fd uint32
	if err := result("sock_open", sockOpen(familyIPv4, typeStream, unsafe.Pointer(&fd))); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf(":%d", port))
	defer file.Close() // the listener has a duplicate
	// A container that is restarted in its pod finds the old one's connections on the port for a minute.
	yes := uint32(1)
	if err := result("sock_setsockopt", sockSetOption(fd, levelSocket, optionReuseAddress, unsafe.Pointer(&yes), 4)); err != nil {
		return nil, err
	}
	// Pointers are 32 bits wide for the engine, and 64 for Go.
	var any [4]byte
	address := [2]uint32{uint32(uintptr(unsafe.Pointer(&any))), uint32(len(any))}
	err := result("sock_bind", sockBind(fd, unsafe.Pointer(&address), uint32(port)))
	runtime.KeepAlive(&any)
	if err != nil {
		return nil, err
	}
	if err := result("sock_listen", sockListen(fd, backlog)); err != nil {
		return nil, err
	}
	// Otherwise accepting would stop every goroutine.
	if err := syscall.SetNonblock(int(fd), true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return net.FileListener(file)
}

func result(call string, errno uint32) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, syscall.Errno(errno))
}
