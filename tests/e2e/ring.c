// The MPI job of the end-to-end tests and the demo: an ordinary program that knows nothing of
// SymVirt.
//
// In each iteration every rank sends a block to its right neighbour, checks the block from its left
// one byte by byte, and takes part in an MPI_Allreduce whose sum it knows beforehand. It measures
// the longest time between two iterations, and at the end it proves which network its messages
// took, by the sockets it holds: a job that quietly used the management network would sit through
// any move undisturbed.
//
//   ring [--seconds S] [--iterations N] [--bytes B] [--net PREFIX] [--json FILE] [--report S]
//
// Each rank prints "rank R ok iterations=N longest_pause_s=X ..."; rank 0 also a JSON object. Exit
// status 0 only if every answer on every rank was right and, with --net, no rank of another node
// was reached but through that network.
#include <arpa/inet.h>
#include <dirent.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct Options {
  double seconds;
  long iterations;
  int bytes;
  const char* net;
  const char* json;
  double report;
};

static double clock_s(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct Options parse(int argc, char** argv) {
  struct Options o = {.seconds = 10, .iterations = 0, .bytes = 16384, .report = 0};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--seconds") == 0)
      o.seconds = atof(argv[i + 1]);
    else if (strcmp(argv[i], "--iterations") == 0)
      o.iterations = atol(argv[i + 1]);
    else if (strcmp(argv[i], "--bytes") == 0)
      o.bytes = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--net") == 0)
      o.net = argv[i + 1];
    else if (strcmp(argv[i], "--json") == 0)
      o.json = argv[i + 1];
    else if (strcmp(argv[i], "--report") == 0)
      o.report = atof(argv[i + 1]);
    else
      argc = 0;
  }
  if (argc % 2 == 0 || o.bytes < 16) {
    fprintf(stderr,
            "usage: ring [--seconds S] [--iterations N] [--bytes B] [--net PREFIX] [--json FILE] "
            "[--report S]\n");
    exit(2);
  }
  return o;
}

// Different for each rank, iteration and position, so that a late, doubled or misplaced block is
// seen.
static void fill(uint32_t* block, int words, int rank, long iteration) {
  uint32_t x = (uint32_t)iteration * 2654435761u + (uint32_t)rank * 40503u + 1;
  for (int i = 0; i < words; ++i) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    block[i] = x;
  }
}

static bool owns_socket(const unsigned long* inodes, int n, unsigned long inode) {
  for (int i = 0; i < n; ++i)
    if (inodes[i] == inode) return true;
  return false;
}

// Counts this process's established TCP connections with others: those whose remote address begins
// with `net`, and the rest; 127.0.0.0/8 (PMIx) is not counted.
static void count_sockets(const char* net, int* on_net, int* elsewhere) {
  unsigned long inodes[1024];
  int n = 0;
  DIR* dir = opendir("/proc/self/fd");
  for (struct dirent* e; dir && (e = readdir(dir)) && n < 1024;) {
    char path[300], target[64];
    snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
    ssize_t len = readlink(path, target, sizeof target - 1);
    if (len <= 0) continue;
    target[len] = 0;
    if (sscanf(target, "socket:[%lu]", &inodes[n]) == 1) ++n;
  }
  if (dir) closedir(dir);
  FILE* f = fopen("/proc/self/net/tcp", "r");
  char line[512], text[INET_ADDRSTRLEN];
  while (f && fgets(line, sizeof line, f)) {
    unsigned remote, state;
    unsigned long inode;
    if (sscanf(line, " %*d: %*8X:%*4X %8X:%*4X %2X %*8X:%*8X %*2X:%*8X %*8X %*d %*d %lu", &remote,
               &state, &inode) != 3)
      continue;
    struct in_addr a = {.s_addr = remote};
    if (state != 1 || !owns_socket(inodes, n, inode) || !inet_ntop(AF_INET, &a, text, sizeof text))
      continue;
    if (strncmp(text, "127.", 4) == 0) continue;
    if (net && strncmp(text, net, strlen(net)) == 0)
      ++*on_net;
    else
      ++*elsewhere;
  }
  if (f) fclose(f);
}

struct Outcome {
  long iterations;
  long wrong;
  // Longest time between two iterations by CLOCK_REALTIME, which symvirt-guestd sets while ranks
  // are at rest, and by CLOCK_MONOTONIC, which was seen to run 40 s ahead in one guest that was
  // moved (TCG's TSC).
  double pause, pause_monotonic;
  double elapsed;
};

static struct Outcome run(const struct Options* o, int rank, int size) {
  const int words = o->bytes / (int)sizeof(uint32_t), right = (rank + 1) % size,
            left = (rank + size - 1) % size;
  uint32_t* out = malloc((size_t)words * 4);
  uint32_t* in = malloc((size_t)words * 4);
  uint32_t* expected = malloc((size_t)words * 4);
  struct Outcome r = {0};
  const double start = clock_s(CLOCK_REALTIME);
  double last = start, last_monotonic = clock_s(CLOCK_MONOTONIC), reported = start;
  for (long i = 0;; ++i) {
    fill(out, words, rank, i);
    fill(expected, words, left, i);
    memset(in, 0, (size_t)words * 4);
    MPI_Sendrecv(out, words, MPI_UINT32_T, right, 0, in, words, MPI_UINT32_T, left, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (memcmp(in, expected, (size_t)words * 4) != 0) ++r.wrong;
    // [0] a sum that is known, [1] rank 0's word that time is up
    long mine[2] = {i + rank, rank == 0 && (o->iterations ? i + 1 >= o->iterations
                                                          : last - start >= o->seconds)},
         sum[2];
    MPI_Allreduce(mine, sum, 2, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    if (sum[0] != i * size + (long)size * (size - 1) / 2) ++r.wrong;
    const double now = clock_s(CLOCK_REALTIME), now_monotonic = clock_s(CLOCK_MONOTONIC);
    // The first iteration opens connections.
    if (i > 0 && now - last > r.pause) r.pause = now - last;
    if (i > 0 && now_monotonic - last_monotonic > r.pause_monotonic)
      r.pause_monotonic = now_monotonic - last_monotonic;
    last = now;
    last_monotonic = now_monotonic;
    r.iterations = i + 1;
    if (rank == 0 && o->report > 0 && now - reported >= o->report) {
      reported = now;
      printf("at %.1f s: iteration %ld, longest pause %.3f s\n", now - start, i, r.pause);
      fflush(stdout);
    }
    if (sum[1]) break;
  }
  r.elapsed = clock_s(CLOCK_REALTIME) - start;
  free(out);
  free(in);
  free(expected);
  return r;
}

static void write_json(const char* path, const char* text) {
  FILE* f = path ? fopen(path, "w") : NULL;
  printf("%s\n", text);
  if (path && (!f || fprintf(f, "%s\n", text) < 0 || fclose(f) != 0))
    fprintf(stderr, "ring: %s: cannot be written\n", path);
}

int main(int argc, char** argv) {
  const struct Options o = parse(argc, argv);
  int rank, size, node_len;
  char node[MPI_MAX_PROCESSOR_NAME];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Get_processor_name(node, &node_len);
  if (rank == 0) {
    printf("started: %d ranks\n", size);
    fflush(stdout);
  }
  const struct Outcome r = run(&o, rank, size);
  int sockets[2] = {0, 0};
  count_sockets(o.net, &sockets[0], &sockets[1]);
  const bool ok = r.wrong == 0 && (!o.net || sockets[1] == 0);
  printf(
      "rank %d %s iterations=%ld longest_pause_s=%.3f wrong=%ld node=%s sockets_on_net=%d "
      "sockets_elsewhere=%d\n",
      rank, ok ? "ok" : "FAILED", r.iterations, r.pause, r.wrong, node, sockets[0], sockets[1]);
  fflush(stdout);
  double longest[2] = {r.pause, r.pause_monotonic}, all_longest[2];
  long counts[4] = {r.wrong, sockets[0], sockets[1], !ok}, all[4];
  MPI_Allreduce(longest, all_longest, 2, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(counts, all, 4, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) {
    char text[512];
    snprintf(text, sizeof text,
             "{\"schema_version\":1,\"ranks\":%d,\"iterations\":%ld,\"elapsed_s\":%.3f,\"answers_"
             "correct\":%s,\"wrong\":%ld,"
             "\"longest_pause_s\":%.3f,\"longest_pause_monotonic_s\":%.3f,\"sockets_on_net\":%ld,"
             "\"sockets_elsewhere\":%ld,\"ok\":%s}",
             size, r.iterations, r.elapsed, all[0] ? "false" : "true", all[0], all_longest[0],
             all_longest[1], all[1], all[2], all[3] ? "false" : "true");
    write_json(o.json, text);
  }
  MPI_Finalize();
  return all[3] ? 1 : 0;
}
