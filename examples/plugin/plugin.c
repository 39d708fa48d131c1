/*
 * Code of somebody else's: a library whose functions a pod calls by path#function. It imports nothing,
 * so there is nothing that it could reach: no file, no clock, no socket, no output but its results.
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name)))

/* The good one. */
EXPORT(fib) uint64_t fib(uint32_t n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* Two that a host must outlive: one never ends, the other takes memory as long as it gets any, and more. */
EXPORT(endless) void endless(void)
{
	for (volatile uint32_t turns = 0;; turns++)
		;
}

EXPORT(hungry) void hungry(void)
{
	while (__builtin_wasm_memory_grow(0, 16) != SIZE_MAX)
		;
	__builtin_trap();
}
