// What C programs do with files through wasi-libc: files DIRECTORY prints what went wrong, and ends with 1 then.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int failed;
static const char *here;

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      printf("line %d: %s (errno: %s)\n", __LINE__, #condition, strerror(errno));                                      \
      failed = 1;                                                                                                      \
    }                                                                                                                  \
  } while (0)

static void streams(void) {
  char line[64];
  FILE *file = fopen("file", "w");
  CHECK(file && fprintf(file, "one\ntwo\n") == 8 && fclose(file) == 0);
  file = fopen("file", "a+");
  CHECK(file && fputs("three\n", file) >= 0 && fseek(file, 4, SEEK_SET) == 0);
  CHECK(fgets(line, sizeof line, file) && strcmp(line, "two\n") == 0);
  CHECK(fgets(line, sizeof line, file) && strcmp(line, "three\n") == 0);
  CHECK(!fgets(line, sizeof line, file) && feof(file));
  CHECK(fclose(file) == 0);
  errno = 0;
  CHECK(!fopen("none", "r") && errno == ENOENT);
  file = fopen("file", "wx");
  CHECK(!file && errno == EEXIST);
  struct stat stat_;
  CHECK(stat("file", &stat_) == 0 && stat_.st_size == 14 && S_ISREG(stat_.st_mode));
  CHECK(access("file", R_OK | W_OK) == 0 && access("none", F_OK) == -1);
  CHECK(truncate("file", 3) == 0 && stat("file", &stat_) == 0 && stat_.st_size == 3);
  CHECK(rename("file", "other") == 0 && unlink("other") == 0);
}

static void directories(void) {
  CHECK(mkdir("directory", 0777) == 0 && mkdir("directory", 0777) == -1 && errno == EEXIST);
  CHECK(chdir("directory") == 0);
  int fd = open("file", O_CREAT | O_RDWR, 0666);
  CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
  char now[256];
  CHECK(getcwd(now, sizeof now) && strstr(now, "/directory"));
  CHECK(chdir(here) == 0);
  DIR *directory = opendir("directory");
  int entries = 0;
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    entries += strcmp(entry->d_name, "file") == 0;
  }
  CHECK(entries == 1 && closedir(directory) == 0);
  CHECK(rmdir("directory") == -1 && errno == ENOTEMPTY);
  CHECK(unlink("directory/file") == 0 && rmdir("directory") == 0);
  CHECK(symlink("to", "link") == 0);
  char target[8] = {0};
  CHECK(readlink("link", target, sizeof target) == 2 && strcmp(target, "to") == 0 && unlink("link") == 0);
}

static void clocks(void) {
  struct timespec before, after, wait = {.tv_nsec = 20000000};
  CHECK(clock_gettime(CLOCK_MONOTONIC, &before) == 0 && nanosleep(&wait, NULL) == 0);
  CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
  CHECK((after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec >= wait.tv_nsec);
  CHECK(time(NULL) > 1767225600);
  CHECK(!isatty(1));
}

int main(int argc, char **argv) {
  here = argc == 2 ? argv[1] : "/";
  CHECK(chdir(here) == 0);
  streams();
  directories();
  clocks();
  return failed;
}
