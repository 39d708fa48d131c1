/*
 * An HTTP/1.1 server with keep-alive and pipelining, in one thread: poll(2) waits for the listener and
 * all connections. PORT names its port, default 8080. GET / and HEAD / answer with a greeting.
 *
 * With the argument "check" it is the client: it asks the server at HOST (default 127.0.0.1) and ends
 * with 0 when that answers with 200, as a probe by exec wants it.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wasi_socket.h"

enum { MAX_CONNECTIONS = 128, MAX_HEAD = 4096 };

static const char GREETING[] = "Hello from C\n";

struct connection {
	int fd;
	size_t received;
	char head[MAX_HEAD + 1]; /* a zero byte behind what was received */
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* Sends a response; 0 when the connection stays open. A client that lets replies pile up until the
 * socket takes no more is given up, so memory stays bounded. */
static int respond(int fd, const char *status, const char *body, int head_only, int close_after)
{
	char text[256];
	const int length = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nConnection: %s\r\n\r\n%s",
				    status, strlen(body), close_after ? "close" : "keep-alive", head_only ? "" : body);
	return send(fd, text, (size_t)length, 0) != length || close_after;
}

/* The value of a header field of the head, or NULL; it ends at the line's end. */
static const char *field(const char *head, const char *name)
{
	const size_t length = strlen(name);
	for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
		line += 2;
		if (strncasecmp(line, name, length) == 0 && line[length] == ':')
			return line + length + 1 + strspn(line + length + 1, " \t");
	}
	return NULL;
}

/* Answers one request, whose head is complete and ends with a zero byte; 0 when the connection stays open. */
static int answer(int fd, const char *head)
{
	char method[8], path[256], version[9];
	if (sscanf(head, "%7s %255s %8s", method, path, version) != 3 || strncmp(version, "HTTP/1.", 7) != 0)
		return respond(fd, "400 Bad Request", "", 0, 1);
	/* A body left unread would be taken for the next request. */
	const char *size = field(head, "Content-Length");
	if (field(head, "Transfer-Encoding") || (size && strtoul(size, NULL, 10) != 0))
		return respond(fd, "413 Content Too Large", "", 0, 1);
	const char *connection = field(head, "Connection");
	const int close_after = version[7] == '0' || (connection && strncasecmp(connection, "close", 5) == 0);
	const int head_only = strcmp(method, "HEAD") == 0;
	if (!head_only && strcmp(method, "GET") != 0)
		return respond(fd, "405 Method Not Allowed", "only GET and HEAD\n", 0, close_after);
	if (strcmp(path, "/") != 0)
		return respond(fd, "404 Not Found", "not found\n", head_only, close_after);
	return respond(fd, "200 OK", GREETING, head_only, close_after);
}

/* Takes what came in and answers every complete request; 0 when the connection stays open. */
static int advance(struct connection *connection)
{
	char *head = connection->head;
	const ssize_t count = recv(connection->fd, head + connection->received, MAX_HEAD - connection->received, 0);
	if (count <= 0)
		return 1;
	connection->received += (size_t)count;
	head[connection->received] = 0;
	char *next = head;
	for (char *end; (end = strstr(next, "\r\n\r\n")); next = end + 4) {
		end[2] = 0; /* the last line keeps its end */
		if (answer(connection->fd, next))
			return 1;
	}
	connection->received -= (size_t)(next - head);
	memmove(head, next, connection->received + 1);
	if (connection->received == MAX_HEAD)
		return respond(connection->fd, "431 Request Header Fields Too Large", "", 0, 1);
	return 0;
}

static int listener(uint16_t port)
{
	const struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
	const int fd = socket(AF_INET, SOCK_STREAM, 0);
	const int yes = 1;
	/* A container that is restarted in its pod finds the old one's connections on the port for a minute. */
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) || bind(fd, (const struct sockaddr *)&any, sizeof any) || listen(fd, 64))
		fail("listening");
	return fd;
}

static void serve(uint16_t port)
{
	static struct connection connections[MAX_CONNECTIONS];
	static struct pollfd events[MAX_CONNECTIONS + 1];
	const int listening = listener(port);
	size_t open = 0;

	printf("listening on port %u\n", port);
	fflush(stdout); /* a log is a pipe: stdio collects before it writes */
	for (;;) {
		for (size_t i = 0; i < open; i++)
			events[i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
		/* The listener is the last, and is left out with all places taken: further clients wait in the
		 * kernel. wasi-libc's poll refuses an entry that waits for nothing. */
		const size_t waiting = open;
		const int accepting = open < MAX_CONNECTIONS;
		events[waiting] = (struct pollfd){.fd = listening, .events = POLLIN};
		if (poll(events, waiting + accepting, -1) < 0)
			fail("poll");
		/* From the end: the last connection takes a closed one's place. */
		for (size_t i = waiting; i-- > 0;) {
			if (events[i].revents == 0 || advance(&connections[i]) == 0)
				continue;
			close(connections[i].fd);
			connections[i] = connections[--open];
		}
		if (accepting && events[waiting].revents) {
			const int fd = accept(listening, NULL, NULL);
			if (fd < 0) { /* the client may be gone again */
				perror("accept");
				continue;
			}
			fcntl(fd, F_SETFL, O_NONBLOCK);
			connections[open].fd = fd;
			connections[open++].received = 0;
		}
	}
}

static int check(const char *host, uint16_t port)
{
	static const char request[] = "HEAD / HTTP/1.1\r\nHost: check\r\nConnection: close\r\n\r\n";
	struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
	char status[sizeof "HTTP/1.1 200"] = "";
	const int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (resolve_ipv4(host, &server.sin_addr))
		fail(host);
	if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) || send(fd, request, strlen(request), 0) < 0)
		fail("asking");
	for (size_t received = 0; received < sizeof status - 1;) {
		const ssize_t count = recv(fd, status + received, sizeof status - 1 - received, 0);
		if (count <= 0)
			fail("the answer");
		received += (size_t)count;
	}
	puts(status);
	return strcmp(status, "HTTP/1.1 200") != 0;
}

int main(int argc, char **argv)
{
	const char *text = getenv("PORT");
	char *end = "";
	const long port = text ? strtol(text, &end, 10) : 8080;

	if (*end || port < 1 || port > 65535) {
		fprintf(stderr, "PORT is '%s', not a port number\n", text);
		return 1;
	}
	if (argc > 1 && strcmp(argv[1], "check") == 0)
		return check(argc > 2 ? argv[2] : "127.0.0.1", (uint16_t)port);
	serve((uint16_t)port);
}
