;; A container written by hand: one WASI call, one page of memory, no toolchain.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $nwritten i32)
                    (result i32)))

  (memory (export "memory") 1)

  ;; 0: one iovec (address 16, length 28); 8: fd_write stores the number of bytes written
  (data (i32.const 0) "\10\00\00\00\1c\00\00\00")
  (data (i32.const 16) "Hello from Slipway, by hand\0a")

  (func $say (param $fd i32)
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))

  ;; the entrypoint of a command
  (func (export "_start")
    (call $say (i32.const 1)))

  ;; another entrypoint, for `wat-hello.wat#complain`: writes to standard error, then traps
  (func (export "complain")
    (call $say (i32.const 2))
    unreachable))
