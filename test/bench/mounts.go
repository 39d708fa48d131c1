package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// mountMany makes a node with many mounts: count bind mounts of one tmpfs, in this mount namespace.
// The returned function takes them all away again; it is to be called after an error, too.
func mountMany(count int) (unmount func() error, err error) {
	var mounted []string
	base, err := os.MkdirTemp("", "bench-mounts-")
	if err != nil {
		return func() error { return nil }, err
	}
	unmount = func() error {
		var failures []error
		for i := len(mounted) - 1; i >= 0; i-- {
			if err := syscall.Unmount(mounted[i], 0); err != nil {
				failures = append(failures, fmt.Errorf("unmount %s: %w", mounted[i], err))
			}
		}
		return errors.Join(append(failures, os.Remove(base))...)
	}
	if err := syscall.Mount("bench", base, "tmpfs", 0, ""); err != nil {
		return unmount, fmt.Errorf("mount %s: %w", base, err)
	}
	mounted = append(mounted, base)
	for i := range count - 1 {
		target := filepath.Join(base, strconv.Itoa(i))
		if err := os.Mkdir(target, 0o700); err != nil {
			return unmount, err
		}
		if err := syscall.Mount(target, target, "", syscall.MS_BIND, ""); err != nil {
			return unmount, fmt.Errorf("mount %s: %w", target, err)
		}
		mounted = append(mounted, target)
	}
	return unmount, nil
}
