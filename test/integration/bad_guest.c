/* What native code does that got out of its module: loaded by a guest in the place of an artefact, it tries each way out that a process
   has, and tells what was not refused. At once where the container has a file /now, while the guest is loading: by the message with which
   a guest fails. Else at SIGUSR2, when the program runs: on its stdout.
   ALLOWED  the system calls that a guest may make, by number
   MODULE   the module's file in the container
   BYTES    what its artefact has of it, in a file of the compiler's
   VERSION  that of the artefact's form
   MARK     a file of the node's that no container has */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

/* What the engine's loader looks for in an artefact: the module, its types' and functions' code. `t1` enters the second function, which
   loops as the module's does; the first one is imported. */
__asm__(".section .rodata\n.globl wasm.code, wasm.size, version\nwasm.code: .incbin \"" BYTES "\"\n0: .balign 4\n"
        "wasm.size: .long 0b - wasm.code\nversion: .long " VERSION "\n.previous");
const void *intrinsics;
void t0(void) {}
void f0(void) {}
void t1(void *context, void (*function)(void *)) { function(context); }
void f1(void *context) {
  for (;;) syscall(SYS_sched_yield);
}

/* The call was answered with SIGSYS. */
static volatile int trapped;

static void on_sigsys(int signal, siginfo_t *info, void *context) {
  trapped = 1;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
}

static long call(long number, long a, long b, long c) {
  trapped = 0;
  register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0, r9 __asm__("r9") = 0;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
}

static char told[4096];
static size_t length;

static void tell(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  length += vsnprintf(told + length, sizeof told - length, format, arguments);
  if (length >= sizeof told) length = sizeof told - 1;
  va_end(arguments);
}

static void calls(void) {
  static const short allowed[] = {ALLOWED};
  for (int number = 0; number < 600; number++) {
    /* uretprobe and uprobe: no filter is asked, and the kernel ends who is not at a probe. */
    int skip = number == 335 || number == 336;
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) skip |= allowed[i] == number;
    if (skip) continue;
    long result = call(number, 0, 0, 0);
    if (!trapped && result != -ENOSYS) tell("call %d: %ld; ", number, result);
  }
}

static void sockets(void) {
  for (int family = 0; family < 64; family++)
    for (int type = 0; type < 16; type++)
      for (int protocol = 0; protocol < 300; protocol++) {
        int tcp = type == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP);
        int udp = type == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP);
        if (((family == AF_INET || family == AF_INET6) && (tcp || udp)) || (family == AF_NETLINK && protocol == NETLINK_ROUTE)) continue;
        long fd = call(SYS_socket, family, type, protocol);
        if (fd != -EAFNOSUPPORT) tell("socket %d %d %d: %ld; ", family, type, protocol, fd);
      }
}

static void others(void) {
  for (int process = -1; process < 64; process++)
    if (process != getpid() && (call(SYS_tgkill, process, process, 0), !trapped)) tell("signal to %d; ", process);
}

/* A filter of its own, and one whose calls it would be asked about. */
static void filters(int loading) {
  call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, 0);
  if (!trapped) tell("a filter that asks; ");
  call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0);
  if (!trapped && !loading) tell("a filter; ");
}

/* Whether there is such a file that can be opened. */
static void file(int directory, const char *path, int flags) {
  long fd = call(SYS_openat, directory, (long)path, flags);
  if (fd >= 0) tell("open %d %s; ", directory, path), close(fd);
}

static void files(void) {
  static const char *const of_the_node[] = {
    "/proc/self/mem", "/proc/1/root", "/rootfs/proc/self/mem", "/sys/kernel", "/rootfs/sys/kernel", "/dev/kmsg", "/rootfs/dev/kmsg",
    "/rootfs/dev/mem", "/run/containerd/containerd.sock", MARK, "/rootfs" MARK, "../../../../.." MARK};
  for (size_t i = 0; i < sizeof of_the_node / sizeof *of_the_node; i++) file(AT_FDCWD, of_the_node[i], O_RDONLY);
  static const char *const read_only[] = {"/artefact.so", "/etc/hosts", "/etc/host.conf"};
  for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) file(AT_FDCWD, read_only[i], O_RDWR);
  file(AT_FDCWD, "/new", O_CREAT | O_RDWR);
  file(AT_FDCWD, "/", O_TMPFILE | O_RDWR);
}

/* Memory that it would execute. */
static void mapped(const char *what, const char *path, int protection, int flags) {
  long fd = path ? call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY) : -1;
  if (path && fd < 0) tell("no %s; ", path);
  trapped = 0;
  register long r10 __asm__("r10") = flags, r8 __asm__("r8") = fd, r9 __asm__("r9") = 0;
  long at;
  __asm__ volatile("syscall" : "=a"(at) : "a"(SYS_mmap), "D"(0), "S"(4096), "d"(protection), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  if (at >= 0) tell("%s is executed; ", what);
  if (path && fd >= 0) close(fd);
}

static void code(int loading) {
  mapped("new memory", NULL, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
  mapped("new memory that is written", NULL, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
  mapped("a copy of the artefact that is written", "/artefact.so", PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
  mapped("a file of the image", "/rootfs" MODULE, PROT_READ | PROT_EXEC, MAP_PRIVATE);
  if (!loading) mapped("the artefact once more", "/artefact.so", PROT_READ | PROT_EXEC, MAP_PRIVATE);
  /* The artefact's code, with what follows it in the file. It has to move for that, and this function with it. */
  register long r10 __asm__("r10") = MREMAP_MAYMOVE;
  long longer;
  if (!loading) {
    __asm__ volatile("syscall" : "=a"(longer) : "a"(SYS_mremap), "D"((long)code & -4096), "S"(4096), "d"(65536), "r"(r10) : "rcx", "r11", "memory");
    if (longer >= 0) tell("more of the artefact is executed; ");
  }
  static char page[8192];
  long at = ((long)page + 4095) & -4096;
  if (call(SYS_mprotect, at, 4096, PROT_READ | PROT_EXEC) >= 0) tell("what was written is executed; ");
}

/* Where a descriptor leads that the guest has. */
static void descriptors(void) {
  for (int fd = 0; fd < 1024; fd++) {
    struct stat s;
    if (fstat(fd, &s)) continue;
    file(fd, "../../../../../../../../.." MARK, O_RDONLY);
    if (S_ISREG(s.st_mode) && pwritev(fd, NULL, 0, 0) == 0) tell("descriptor %d can be written; ", fd);
  }
}

static void attack(int loading) {
  calls(), sockets(), others(), filters(loading), files(), code(loading), descriptors();
  if (!length) tell("nothing");
}

static void on_sigusr2(int signal) {
  attack(0);
  tell("\n");
  _exit(write(1, told, length) < 0);
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSYS, &action, NULL);
  struct sigaction armed = {.sa_handler = on_sigusr2};
  sigaction(SIGUSR2, &armed, NULL);
  if (call(SYS_openat, AT_FDCWD, (long)"/rootfs/now", O_PATH) < 0) return;
  attack(1);
  /* Failed, and its text: length in groups of seven bits. */
  char message[sizeof told + 3] = {8, length & 127 | 128, length >> 7};
  memcpy(message + 3, told, length);
  call(SYS_sendto, 3, (long)message, length + 3);
  for (;;) call(SYS_recvfrom, 3, (long)message, sizeof message);
}
