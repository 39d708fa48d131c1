/* neighbour MARK: what a process in the same pid namespace can take from the others, looked for without end; each thing is told once, as
   "WHAT of NAME". MARK is a file of the node's that no container has.
   caps   it has a capability           root   its root is the node's, or another that holds MARK
   exe    its program's file            fd     a file behind one of its descriptors
   map    a file that it has mapped     these three: it can be opened for writing, or could be if nobody ran it; on a
                                        read-only mount it could not */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static char told[256][160];

static void tell(const char *what, const char *name) {
  char line[160];
  snprintf(line, sizeof line, "%s of %s", what, name);
  for (int i = 0; i < 256; i++) {
    if (!strcmp(told[i], line)) return;
    if (told[i][0]) continue;
    strcpy(told[i], line);
    puts(line);
    return;
  }
}

/* Whether the file behind the path can be written, and its name: of one descriptor, for what the path means may be gone a moment later. */
static int writable(int process, const char *path, char *name, size_t size) {
  int at = openat(process, path, O_PATH);
  if (at < 0) return 0;
  char self[32];
  snprintf(self, sizeof self, "/proc/self/fd/%d", at);
  ssize_t n = readlink(self, name, size - 1);
  name[n > 0 ? n : 0] = 0;
  struct stat s;
  struct statvfs v;
  int yes = 0;
  if (!fstat(at, &s) && S_ISREG(s.st_mode)) {
    int fd = open(self, O_WRONLY);
    yes = fd >= 0 || (errno == ETXTBSY && !fstatvfs(at, &v) && !(v.f_flag & ST_RDONLY));
    if (fd >= 0) close(fd);
  }
  close(at);
  return yes;
}

static void list(int process, const char *of, const char *what, const char *name) {
  char path[64], target[64], line[96];
  int fd = openat(process, of, O_RDONLY | O_DIRECTORY);
  DIR *d = fd < 0 ? NULL : fdopendir(fd);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d));) {
    snprintf(path, sizeof path, "%s/%.40s", of, e->d_name);
    if (e->d_name[0] == '.' || !writable(process, path, target, sizeof target)) continue;
    /* What a program opens in its own container is what it has. */
    if (!strncmp(target, "/rootfs/", 8)) continue;
    snprintf(line, sizeof line, "%s %s", what, target);
    tell(line, name);
  }
  closedir(d);
}

/* PROCESS is its directory: whatever becomes of it meanwhile, no other process is asked in its place. */
static void look(int process, const char *mark) {
  char path[384], text[4096], name[64] = "";
  unsigned long long caps = 0, found;
  int status = openat(process, "status", O_RDONLY);
  FILE *f = status < 0 ? NULL : fdopen(status, "r");
  if (!f) return;
  while (fgets(text, sizeof text, f)) {
    sscanf(text, "Name: %63s", name);
    if (sscanf(text, "CapPrm: %llx", &found) == 1 || sscanf(text, "CapEff: %llx", &found) == 1 || sscanf(text, "CapBnd: %llx", &found) == 1) caps |= found;
  }
  fclose(f);
  /* It has ended before it was asked. */
  if (!name[0]) return;
  struct stat own, other;
  /* Those of this container are what it is itself. */
  if (!stat("/", &own) && !fstatat(process, "root/", &other, 0) && own.st_dev == other.st_dev && own.st_ino == other.st_ino) return;
  tell("seen", name);
  if (caps) tell("caps", name);
  snprintf(path, sizeof path, "root%s", mark);
  if (!faccessat(process, path, F_OK, 0)) tell("root", name);
  char program[64];
  if (writable(process, "exe", program, sizeof program)) tell("exe", name);
  list(process, "fd", "fd", name);
  /* This takes CAP_CHECKPOINT_RESTORE. */
  list(process, "map_files", "map", name);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc != 2) return 2;
  puts("looking");
  for (;;) {
    DIR *d = opendir("/proc");
    if (!d) return 1;
    for (struct dirent *e; (e = readdir(d));) {
      if (e->d_name[0] < '1' || e->d_name[0] > '9') continue;
      int process = openat(dirfd(d), e->d_name, O_PATH | O_DIRECTORY);
      if (process < 0) continue;
      look(process, argv[1]);
      close(process);
    }
    closedir(d);
  }
}
