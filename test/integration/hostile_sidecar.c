/* hostile_sidecar look MARK: what a Linux container can do to the other processes of its pod, tried once on each whose name begins with
   "slipway"; one line each, as "WHAT NAME". MARK is a file of the node's that no container has.
     node        MARK is found: by its root, its working directory, a descriptor, or in its mount namespace
     caps        it has a capability
     abstract    a Unix socket with an abstract name, of whoever
     memory      its memory is open for reading and writing     trace       ptrace attaches to it
     descriptor  pidfd_getfd takes one                          namespaces  its mount namespace can be entered
     signal      may be sent to it                              limits, processors, oom   can be set
   hostile_sidecar swap DIRECTORY: exchanges names in it without end, there and back: swap with link and with node, swap/file with swap/node. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *mark;
static char name[64];

static void tell(const char *what) { printf("%s %s\n", what, name); }

static void path_of(char *path, int pid, const char *file) { sprintf(path, "/proc/%d/%.200s", pid, file); }

/* Whether the node's file is below a directory, or above it. */
static int leads_out(int directory) {
  char above[4096];
  snprintf(above, sizeof above, "../../../../../../../../..%s", mark);
  return !faccessat(directory, above, F_OK, 0) || !faccessat(directory, mark + 1, F_OK, 0);
}

static void try_files(int pid) {
  char path[300];
  static const char *const ways[] = {"root/", "cwd/"};
  for (int i = 0; i < 2; i++) {
    path_of(path, pid, ways[i]);
    int directory = open(path, O_PATH | O_DIRECTORY);
    if (directory < 0) continue;
    if (leads_out(directory)) tell("node");
    close(directory);
  }
  path_of(path, pid, "fd");
  DIR *d = opendir(path);
  for (struct dirent *e; d && (e = readdir(d));) {
    int fd = openat(dirfd(d), e->d_name, O_PATH);
    if (fd < 0 || e->d_name[0] == '.') continue;
    if (leads_out(fd)) tell("node");
    close(fd);
  }
  if (d) closedir(d);
  path_of(path, pid, "mem");
  if (open(path, O_RDWR) >= 0) tell("memory");
  path_of(path, pid, "oom_score_adj");
  int score = open(path, O_RDWR);
  char text[16];
  ssize_t n = read(score, text, sizeof text);
  if (n > 0 && pwrite(score, text, n, 0) == n) tell("oom");
}

static void try_calls(int pid) {
  if (!kill(pid, 0)) tell("signal");
  struct rlimit limit;
  if (!prlimit(pid, RLIMIT_NOFILE, NULL, &limit) && !prlimit(pid, RLIMIT_NOFILE, &limit, NULL)) tell("limits");
  cpu_set_t set;
  if (!sched_getaffinity(pid, sizeof set, &set) && !sched_setaffinity(pid, sizeof set, &set)) tell("processors");
  if (!ptrace(PTRACE_ATTACH, pid, 0, 0)) {
    waitpid(pid, NULL, __WALL);
    ptrace(PTRACE_DETACH, pid, 0, 0);
    tell("trace");
  }
  int pidfd = syscall(SYS_pidfd_open, pid, 0), taken = 0;
  for (int n = 0; n < 64; n++) {
    int fd = syscall(SYS_pidfd_getfd, pidfd, n, 0);
    if (fd < 0) continue;
    if (!taken++) tell("descriptor");
    if (leads_out(fd)) tell("node");
    close(fd);
  }
  /* Of all its namespaces alone and together: in a process that has them then. */
  static const int kinds[] = {CLONE_NEWNS, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNS};
  for (int i = 0; i < 4; i++) {
    fflush(stdout);
    if (fork()) {
      wait(NULL);
      continue;
    }
    if (!setns(pidfd, kinds[i])) {
      if (i == 0) tell("namespaces");
      if (!access(mark, F_OK) || leads_out(AT_FDCWD)) tell("node");
      fflush(stdout);
    }
    _exit(0);
  }
}

static void look(int pid) {
  char path[300], line[256];
  path_of(path, pid, "status");
  FILE *status = fopen(path, "r");
  if (!status) return;
  unsigned long long caps = 0, found;
  name[0] = 0;
  while (fgets(line, sizeof line, status)) {
    sscanf(line, "Name: %63s", name);
    if (sscanf(line, "CapPrm: %llx", &found) == 1 || sscanf(line, "CapEff: %llx", &found) == 1 || sscanf(line, "CapBnd: %llx", &found) == 1) caps |= found;
  }
  fclose(status);
  if (strncmp(name, "slipway", 7)) return;
  tell("seen");
  if (caps) tell("caps");
  try_files(pid);
  try_calls(pid);
}

static void abstract_sockets(void) {
  char line[512], path[200];
  FILE *list = fopen("/proc/net/unix", "r");
  while (list && fgets(line, sizeof line, list)) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (sscanf(line, "%*s %*s %*s %*s %*s %*s %*s @%107s", path) != 1) continue;
    memcpy(at.sun_path + 1, path, strlen(path));
    strcpy(name, path);
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    for (int i = 0; i < 3; i++) {
      int s = socket(AF_UNIX, types[i], 0);
      if (!connect(s, (void *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(path))) tell("abstract");
      close(s);
    }
  }
}

static void swap(const char *directory) {
  if (chdir(directory)) exit(1);
  static const char *const pairs[][2] = {{"swap", "link"}, {"swap", "node"}, {"swap/file", "swap/node"}};
  for (unsigned n = 0;; n++)
    for (int back = 0; back < 2; back++) renameat2(AT_FDCWD, pairs[n % 3][0], AT_FDCWD, pairs[n % 3][1], RENAME_EXCHANGE);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc != 3) return 2;
  if (!strcmp(argv[1], "swap")) swap(argv[2]);
  mark = argv[2];
  abstract_sockets();
  DIR *d = opendir("/proc");
  for (struct dirent *e; d && (e = readdir(d));)
    if (e->d_name[0] >= '1' && e->d_name[0] <= '9') look(atoi(e->d_name));
  return !d;
}
