/*
 * The sockets that wasi-libc lacks, over WasmEdge's own functions: copy this file into your project.
 *
 * WASI preview 1 knows sockets that somebody else has opened, so wasi-libc has accept, recv, send,
 * shutdown, poll and close, and no socket, bind, listen or connect. WasmEdge (0.17 here) has them, as
 * imports beside WASI's own. First come these imports with their exact form, then POSIX functions
 * over them: socket, bind, listen, connect, sendto, recvfrom, getsockname, getpeername and, for
 * options that are a number, setsockopt. For getaddrinfo there is resolve_ipv4. Without Unix sockets
 * and socket pairs.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef WASI_SOCKET_H
#define WASI_SOCKET_H

#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

/*
 * The imports. Each returns 0 or an error number, whose values are those of wasi-libc's <errno.h>;
 * what it has to say goes through the pointers at its end. Pointers, sizes and descriptors are
 * 32 bits wide, ports are in the machine's byte order, addresses in the network's.
 */
#define WASI_IMPORT(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) uint32_t wasi_##name

enum wasi_family { WASI_FAMILY_UNSPECIFIED, WASI_FAMILY_INET4, WASI_FAMILY_INET6 };
enum wasi_type { WASI_TYPE_ANY, WASI_TYPE_DATAGRAM, WASI_TYPE_STREAM };

/* An address of 4 or 16 bytes; where the engine writes one, 16 bytes (recv_from: 128). */
struct wasi_address {
	uint8_t *bytes;
	uint32_t size;
};

struct wasi_buffer {
	void *bytes;
	uint32_t size;
};

WASI_IMPORT(sock_open)(uint32_t family, uint32_t type, uint32_t *fd);
WASI_IMPORT(sock_bind)(uint32_t fd, const struct wasi_address *address, uint32_t port);
WASI_IMPORT(sock_listen)(uint32_t fd, uint32_t backlog);
WASI_IMPORT(sock_connect)(uint32_t fd, const struct wasi_address *address, uint32_t port);
/* wasi-libc's accept is the three-argument form of WASI; WasmEdge gives each import the one it asks for. */
WASI_IMPORT(sock_accept)(uint32_t fd, uint32_t flags, uint32_t *connection);
WASI_IMPORT(sock_recv)(uint32_t fd, const struct wasi_buffer *buffers, uint32_t count, uint32_t flags, uint32_t *received, uint32_t *flags_out);
WASI_IMPORT(sock_send)(uint32_t fd, const struct wasi_buffer *buffers, uint32_t count, uint32_t flags, uint32_t *sent);
/* The sender's address: its family in two bytes (little endian), then 4 or 16 bytes. */
WASI_IMPORT(sock_recv_from)(uint32_t fd, const struct wasi_buffer *buffers, uint32_t count, struct wasi_address *from, uint32_t flags, uint32_t *port, uint32_t *received, uint32_t *flags_out);
WASI_IMPORT(sock_send_to)(uint32_t fd, const struct wasi_buffer *buffers, uint32_t count, const struct wasi_address *to, uint32_t port, uint32_t flags, uint32_t *sent);
/* Bits: 1 receiving, 2 sending. */
WASI_IMPORT(sock_shutdown)(uint32_t fd, uint32_t how);
/* The kind of address that these two tell is 4 or 6. */
WASI_IMPORT(sock_getlocaladdr)(uint32_t fd, struct wasi_address *address, uint32_t *kind, uint32_t *port);
WASI_IMPORT(sock_getpeeraddr)(uint32_t fd, struct wasi_address *address, uint32_t *kind, uint32_t *port);

/* The level is 0; the value of a timeout is a struct timeval, any other a number of 32 bits. */
enum wasi_option {
	WASI_OPTION_REUSEADDR,
	WASI_OPTION_TYPE,
	WASI_OPTION_ERROR,
	WASI_OPTION_DONTROUTE,
	WASI_OPTION_BROADCAST,
	WASI_OPTION_SNDBUF,
	WASI_OPTION_RCVBUF,
	WASI_OPTION_KEEPALIVE,
	WASI_OPTION_OOBINLINE,
	WASI_OPTION_LINGER,
	WASI_OPTION_RCVLOWAT,
	WASI_OPTION_RCVTIMEO,
	WASI_OPTION_SNDTIMEO,
	WASI_OPTION_ACCEPTCONN,
};
WASI_IMPORT(sock_getsockopt)(uint32_t fd, uint32_t level, uint32_t option, void *value, uint32_t *size);
WASI_IMPORT(sock_setsockopt)(uint32_t fd, uint32_t level, uint32_t option, const void *value, uint32_t size);

/* The list of results is made by the caller, linked through `next`, and filled in. */
struct wasi_sockaddr {
	uint8_t family;
	uint32_t size;
	uint8_t *bytes; /* port and address as in the host's sockaddr: 2 bytes and 4, in the network's order */
};

struct wasi_addrinfo {
	uint16_t flags;
	uint8_t family;
	uint8_t type;
	uint8_t protocol; /* 0 any, 1 TCP, 2 UDP */
	uint32_t address_size;
	struct wasi_sockaddr *address;
	char *canonical_name;
	uint32_t canonical_name_size;
	struct wasi_addrinfo *next;
};

/* Both names end with a zero byte, which their sizes count. */
WASI_IMPORT(sock_getaddrinfo)(const char *node, uint32_t node_size, const char *service, uint32_t service_size, const struct wasi_addrinfo *hints, struct wasi_addrinfo **results, uint32_t capacity, uint32_t *count);

/* POSIX over the imports. wasi-libc has no numbers for these options: WasmEdge's are as good as any. */
#define SO_REUSEADDR WASI_OPTION_REUSEADDR
#define SO_BROADCAST WASI_OPTION_BROADCAST
#define SO_SNDBUF WASI_OPTION_SNDBUF
#define SO_RCVBUF WASI_OPTION_RCVBUF
#define SO_KEEPALIVE WASI_OPTION_KEEPALIVE

static inline int wasi_result(uint32_t error)
{
	if (error == 0)
		return 0;
	errno = (int)error;
	return -1;
}

/* The address and port of a sockaddr_in or sockaddr_in6; -1 for another family. */
static inline int wasi_address_of(const struct sockaddr *name, struct wasi_address *address, uint32_t *port)
{
	if (name->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)name;
		*address = (struct wasi_address){(uint8_t *)&in->sin_addr, 4};
		*port = ntohs(in->sin_port);
		return 0;
	}
	if (name->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)name;
		*address = (struct wasi_address){(uint8_t *)&in6->sin6_addr, 16};
		*port = ntohs(in6->sin6_port);
		return 0;
	}
	return wasi_result(EAFNOSUPPORT);
}

/* Fills a sockaddr from an address; as in POSIX, no more than fits is written, and *length is the whole. */
static inline void wasi_put_address(struct sockaddr *name, socklen_t *length, const uint8_t *bytes, int is_inet6, uint32_t port)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	const void *whole = is_inet6 ? (const void *)&in6 : (const void *)&in;
	const socklen_t size = is_inet6 ? sizeof in6 : sizeof in;

	memcpy(&in.sin_addr, bytes, sizeof in.sin_addr);
	memcpy(&in6.sin6_addr, bytes, sizeof in6.sin6_addr);
	memcpy(name, whole, size < *length ? size : *length);
	*length = size;
}

static inline int socket(int domain, int type, int protocol)
{
	(void)protocol;
	uint32_t fd;
	if (domain != AF_INET && domain != AF_INET6)
		return wasi_result(EAFNOSUPPORT);
	if (wasi_result(wasi_sock_open(domain == AF_INET ? WASI_FAMILY_INET4 : WASI_FAMILY_INET6,
				       type == SOCK_DGRAM ? WASI_TYPE_DATAGRAM : WASI_TYPE_STREAM, &fd)))
		return -1;
	return (int)fd;
}

static inline int bind(int fd, const struct sockaddr *name, socklen_t length)
{
	(void)length;
	struct wasi_address address;
	uint32_t port;
	if (wasi_address_of(name, &address, &port))
		return -1;
	return wasi_result(wasi_sock_bind((uint32_t)fd, &address, port));
}

static inline int listen(int fd, int backlog)
{
	return wasi_result(wasi_sock_listen((uint32_t)fd, (uint32_t)backlog));
}

static inline int connect(int fd, const struct sockaddr *name, socklen_t length)
{
	(void)length;
	struct wasi_address address;
	uint32_t port;
	if (wasi_address_of(name, &address, &port))
		return -1;
	return wasi_result(wasi_sock_connect((uint32_t)fd, &address, port));
}

static inline int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	if (level != SOL_SOCKET)
		return wasi_result(ENOPROTOOPT);
	return wasi_result(wasi_sock_setsockopt((uint32_t)fd, 0, (uint32_t)option, value, length));
}

static inline int getsockname(int fd, struct sockaddr *name, socklen_t *length)
{
	uint8_t bytes[16] = {0};
	struct wasi_address address = {bytes, sizeof bytes};
	uint32_t kind, port;
	if (wasi_result(wasi_sock_getlocaladdr((uint32_t)fd, &address, &kind, &port)))
		return -1;
	wasi_put_address(name, length, bytes, kind == 6, port);
	return 0;
}

static inline int getpeername(int fd, struct sockaddr *name, socklen_t *length)
{
	uint8_t bytes[16] = {0};
	struct wasi_address address = {bytes, sizeof bytes};
	uint32_t kind, port;
	if (wasi_result(wasi_sock_getpeeraddr((uint32_t)fd, &address, &kind, &port)))
		return -1;
	wasi_put_address(name, length, bytes, kind == 6, port);
	return 0;
}

static inline ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *name, socklen_t length)
{
	(void)length;
	const struct wasi_buffer buffer = {(void *)data, size};
	struct wasi_address address;
	uint32_t port, sent;
	if (wasi_address_of(name, &address, &port))
		return -1;
	if (wasi_result(wasi_sock_send_to((uint32_t)fd, &buffer, 1, &address, port, (uint32_t)flags, &sent)))
		return -1;
	return (ssize_t)sent;
}

static inline ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *name, socklen_t *length)
{
	const struct wasi_buffer buffer = {data, size};
	uint8_t bytes[128] = {0};
	struct wasi_address address = {bytes, sizeof bytes};
	uint32_t port, received, flags_out;
	if (wasi_result(wasi_sock_recv_from((uint32_t)fd, &buffer, 1, &address, (uint32_t)flags, &port, &received, &flags_out)))
		return -1;
	if (name)
		wasi_put_address(name, length, bytes + 2, bytes[0] == WASI_FAMILY_INET6, port);
	return (ssize_t)received;
}

/* The first IPv4 address of a host's name, as /etc/hosts and /etc/resolv.conf of the pod have it. */
static inline int resolve_ipv4(const char *host, struct in_addr *found)
{
	uint8_t bytes[26] = {0};
	struct wasi_sockaddr address = {.family = WASI_FAMILY_INET4, .size = sizeof bytes, .bytes = bytes};
	char canonical_name[32];
	struct wasi_addrinfo result = {.address = &address, .canonical_name = canonical_name, .canonical_name_size = sizeof canonical_name};
	const struct wasi_addrinfo hints = {.family = WASI_FAMILY_INET4, .type = WASI_TYPE_STREAM, .protocol = 1};
	struct wasi_addrinfo *results = &result;
	uint32_t count = 0;
	/* Its errors are the resolver's, numbered from 77, for which wasi-libc has no names: unknown, no answer. */
	if (wasi_sock_getaddrinfo(host, (uint32_t)strlen(host) + 1, "", 1, &hints, &results, 1, &count) != 0 || count == 0)
		return wasi_result(EHOSTUNREACH);
	memcpy(found, bytes + 2, sizeof *found);
	return 0;
}

#endif
