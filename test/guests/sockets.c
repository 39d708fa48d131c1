// sockets PORT: answers one TCP client, by what C has: the engine's functions for opening, declared by hand, with the
// 128-byte addresses of their second version, and wasi-libc's for the rest. Says what it sees on the way.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

typedef struct {
  void *bytes;
  uint32_t length;
} address_t;

// An address of any family: 1 is IPv4, 2 is IPv6.
typedef struct {
  uint16_t family;
  uint8_t bytes[126];
} storage_t;

enum { INET6 = 2, STREAM = 2 };

WASI("sock_open") int sock_open(int family, int type, int *socket);
WASI("sock_bind") int sock_bind(int socket, const address_t *address, int port);
WASI("sock_listen") int sock_listen(int socket, int backlog);
WASI("sock_getlocaladdr") int sock_getlocaladdr(int socket, address_t *address, uint32_t *port);
WASI("sock_getpeeraddr") int sock_getpeeraddr(int socket, address_t *address, uint32_t *port);

static void check(int error, const char *what) {
  if (error == 0)
    return;
  fprintf(stderr, "sockets: %s: %s\n", what, strerror(error));
  exit(1);
}

static void print_address(const char *whose, const storage_t *address, uint32_t port) {
  const uint8_t *b = address->bytes;
  printf("%s: family %d, ", whose, address->family);
  for (int i = 0; i < 16; i++)
    printf("%02x", b[i]);
  printf(", port %u\n", (unsigned)port);
}

static const char *blocking(int fd) { return fcntl(fd, F_GETFL) & O_NONBLOCK ? "non-blocking" : "blocking"; }

int main(int argc, char **argv) {
  int listener, count = 0;
  uint32_t port;
  char buffer[4096];
  uint8_t any[16] = {0};
  storage_t storage = {0};
  address_t address = {any, sizeof any}, wide = {&storage, sizeof storage};

  check(sock_open(INET6, STREAM, &listener), "sock_open");
  check(sock_bind(listener, &address, argc > 1 ? atoi(argv[1]) : 0), "sock_bind");
  check(sock_listen(listener, 1), "sock_listen");
  check(sock_getlocaladdr(listener, &wide, &port), "sock_getlocaladdr");
  print_address("local", &storage, port);
  fflush(stdout);

  int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  check(client < 0 ? errno : 0, "accept4");
  printf("accepted: %s, listener: %s\n", blocking(client), blocking(listener));
  check(sock_getpeeraddr(client, &wide, &port), "sock_getpeeraddr");
  print_address("peer", &storage, port);

  struct pollfd wait = {.fd = client, .events = POLLIN};
  check(poll(&wait, 1, 10000) == 1 ? 0 : ETIMEDOUT, "poll");
  ssize_t peeked = recv(client, buffer, sizeof buffer, MSG_PEEK);
  ioctl(client, FIONREAD, &count);
  ssize_t received = recv(client, buffer, sizeof buffer, 0);
  printf("peeked %zd, FIONREAD %d, received %zd\n", peeked, count, received);
  fflush(stdout);
  check(received < 0 ? errno : 0, "recv");
  check(send(client, buffer, received, 0) == received ? 0 : EIO, "send");
  check(shutdown(client, SHUT_RDWR) ? errno : 0, "shutdown");
  close(client);
  return 0;
}
