;; Writes to 512 MiB of memory, then sleeps.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8193)
  ;; A subscription to the clock: an hour from now.
  (data (i32.const 24) "\00\a0\b8\30\46\03")
  (func (export "_start")
    (memory.fill (i32.const 65536) (i32.const 1) (i32.const 536870912))
    (loop $for_ever
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (br $for_ever))))
