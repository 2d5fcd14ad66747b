/* First and almost only program of the nested guest: a static one, because each fork and each exec is dear thirty times over. It loads
 * modules, starts symvirt-guestd, and for ever tells a peer outside who it is: one datagram each half second to the peer, with the
 * kernel's boot id, a count, and how many came back. The addresses are symvirt-guestd's business. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PEER "10.98.0.1"
#define PEER_PORT 9798

static double uptime(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* First line of a file, "" when there is none. */
static void read_line(const char* path, char* line, size_t size) {
  line[0] = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t n = read(fd, line, size - 1);
  close(fd);
  line[n < 0 ? 0 : n] = 0;
  line[strcspn(line, "\n")] = 0;
}

static void load_modules(const char* folder) {
  struct dirent** names;
  int n = scandir(folder, &names, NULL, alphasort);
  for (int i = 0; i < n; ++i) {
    if (names[i]->d_name[0] == '.') continue;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0)
      printf("guest: %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
  }
}

/* udev's work: /dev/virtio-ports/NAME. Returns whether a port was found. */
static int name_ports(void) {
  DIR* d = opendir("/sys/class/virtio-ports");
  if (!d) return 0;
  mkdir("/dev/virtio-ports", 0755);
  int found = 0;
  for (struct dirent* e; (e = readdir(d));) {
    char path[512], name[128], link[256], target[300];
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", e->d_name);
    read_line(path, name, sizeof name);
    if (e->d_name[0] == '.' || !name[0]) continue;
    snprintf(link, sizeof link, "/dev/virtio-ports/%s", name);
    snprintf(target, sizeof target, "../%s", e->d_name);
    found |= symlink(target, link) == 0 || errno == EEXIST;
  }
  closedir(d);
  return found;
}

static void start_guestd(void) {
  if (fork() != 0) return;
  char* argv[] = {"/symvirt-guestd", "--foreground", NULL};
  char* env[] = {"PATH=/", NULL};
  execve(argv[0], argv, env);
  printf("guest: %s: %s\n", argv[0], strerror(errno));
  _exit(1);
}

/* The clock and the TSC at the same moment: read again when something came between. */
static double pair(unsigned long long* tsc) {
  for (;;) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC_RAW, &a);
    *tsc = __rdtsc();
    clock_gettime(CLOCK_MONOTONIC_RAW, &b);
    if (b.tv_sec == a.tv_sec && b.tv_nsec - a.tv_nsec < 5000)
      return (double)a.tv_sec + (double)(a.tv_nsec + b.tv_nsec) / 2e9;
  }
}

/* Outside: frequency of the TSC, which under TCG is the machine's own at every level. A guest that is not let run while it measures that
 * for itself gets it wrong, and then has a clock that goes five times too fast. */
static int print_tsc_khz(void) {
  unsigned long long from, to;
  double begin = pair(&from);
  usleep(300000);
  double end = pair(&to);
  printf("%.0f\n", (double)(to - from) / (end - begin) / 1000);
  return 0;
}

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "--tsc-khz") == 0) return print_tsc_khz();
  mount("dev", "/dev", "devtmpfs", 0, "");
  mount("proc", "/proc", "proc", 0, "");
  mount("sys", "/sys", "sysfs", 0, "");
  mount("run", "/run", "tmpfs", 0, "");
  int console = open("/dev/console", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) dup2(console, fd);
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("guest: %.1f s first program\n", uptime());
  load_modules("/modules");
  char boot_id[64];
  read_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
  printf("guest: %.1f s modules loaded, boot id %s\n", uptime(), boot_id);
  for (int i = 0; i < 600 && !name_ports(); ++i) usleep(50000);
  start_guestd();

  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(PEER_PORT)};
  inet_aton(PEER, &peer.sin_addr);
  int s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  unsigned long sent = 0, returned = 0;
  for (double next = uptime();;) {
    double now = uptime();
    if (now >= next) {
      next = now + 0.5;
      char text[160];
      int n = snprintf(text, sizeof text, "%s %lu %lu", boot_id, sent + 1, returned);
      /* Without a route, that is without the device, this fails, and nothing is sent. */
      if (sendto(s, text, (size_t)n, 0, (struct sockaddr*)&peer, sizeof peer) == n) ++sent;
    }
    struct pollfd p = {.fd = s, .events = POLLIN};
    char back[256];
    if (poll(&p, 1, (int)((next - now) * 1000) + 1) > 0) {
      ssize_t n = recv(s, back, sizeof back - 1, 0);
      if (n > 0 && strncmp(back, boot_id, strlen(boot_id)) == 0) ++returned;
    }
    if (waitpid(-1, NULL, WNOHANG) > 0) {
      printf("guest: %.1f s a program ended; symvirt-guestd is started again\n", uptime());
      sleep(1);
      start_guestd();
    }
  }
}
