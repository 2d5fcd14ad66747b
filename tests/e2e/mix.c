// The MPI job of the RDMA tests: everything at once, each answer known beforehand and checked.
//
// In each iteration
//   threads (--threads T, MPI_THREAD_MULTIPLE) each exchange a block with both neighbours, on a
//     communicator of their own, of 1 byte, 8 KiB (eager) or 1 MiB (rendezvous) in turn;
//   the main thread goes through collectives (allreduce, broadcast, all-to-all, gather) and
//     one-sided calls (put and get between fences, accumulate and fetch-and-add under locks).
//
//   mix [--seconds S] [--until FILE] [--threads T] [--json FILE] [--report S]
//
// --until: ends when that file is there, after S seconds at most.
//
// Exit status 0 only if every answer on every rank was right. Prints "rank R ok iterations=N ..."
// and, rank 0, a JSON object as ring does.
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { kWindowWords = 4096, kMostThreads = 8, kMostRanks = 64 };

struct Options {
  double seconds;
  const char* until;
  int threads;
  const char* json;
  double report;
};

static struct Options parse(int argc, char** argv) {
  struct Options o = {.seconds = 10, .threads = 1};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--seconds") == 0)
      o.seconds = atof(argv[i + 1]);
    else if (strcmp(argv[i], "--until") == 0)
      o.until = argv[i + 1];
    else if (strcmp(argv[i], "--threads") == 0)
      o.threads = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--json") == 0)
      o.json = argv[i + 1];
    else if (strcmp(argv[i], "--report") == 0)
      o.report = atof(argv[i + 1]);
    else
      argc = 0;
  }
  if (argc % 2 == 0 || o.threads < 1 || o.threads > kMostThreads) {
    fprintf(
        stderr,
        "usage: mix [--seconds S] [--until FILE] [--threads 1..%d] [--json FILE] [--report S]\n",
        kMostThreads);
    exit(2);
  }
  return o;
}

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Byte i of the block that `rank` sends in this iteration of this thread, so that a late, doubled,
// misplaced or stale block is seen.
static void fill(unsigned char* block, int bytes, int rank, int thread, long iteration) {
  uint32_t x =
      (uint32_t)iteration * 2654435761u + (uint32_t)rank * 40503u + (uint32_t)thread * 69069u + 1;
  for (int i = 0; i < bytes; ++i) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    block[i] = (unsigned char)x;
  }
}

struct Worker {
  MPI_Comm comm;
  int thread;
  pthread_t id;
  const atomic_bool* stop;  // rank 0's main thread says so; agreed upon below
  long iterations, wrong;
};

static const int kSizes[] = {1, 8192, 1 << 20};

static void* exchange(void* argument) {
  struct Worker* w = argument;
  int rank, size;
  MPI_Comm_rank(w->comm, &rank);
  MPI_Comm_size(w->comm, &size);
  const int right = (rank + 1) % size, left = (rank + size - 1) % size, most = kSizes[2];
  unsigned char *out = malloc((size_t)most), *expected = malloc((size_t)most),
                *in[2] = {malloc((size_t)most), malloc((size_t)most)};
  for (long i = 0;; ++i) {
    // Threads are out of step on purpose: all sizes are under way at once.
    const int bytes = kSizes[(i + w->thread) % 3];
    fill(out, bytes, rank, w->thread, i);
    MPI_Request requests[4];
    memset(in[0], 0, (size_t)bytes);
    memset(in[1], 0, (size_t)bytes);
    MPI_Irecv(in[0], bytes, MPI_BYTE, left, 1, w->comm, &requests[0]);
    MPI_Irecv(in[1], bytes, MPI_BYTE, right, 2, w->comm, &requests[1]);
    MPI_Isend(out, bytes, MPI_BYTE, right, 1, w->comm, &requests[2]);
    MPI_Isend(out, bytes, MPI_BYTE, left, 2, w->comm, &requests[3]);
    MPI_Waitall(4, requests, MPI_STATUSES_IGNORE);
    for (int side = 0; side < 2; ++side) {
      fill(expected, bytes, side == 0 ? left : right, w->thread, i);
      if (memcmp(in[side], expected, (size_t)bytes) != 0) ++w->wrong;
    }
    w->iterations = i + 1;
    int mine = *w->stop, all = 0;
    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MAX, w->comm);
    if (all) break;
  }
  free(out);
  free(expected);
  free(in[0]);
  free(in[1]);
  return NULL;
}

static long collectives(int rank, int size, long i) {
  long wrong = 0, mine = i + rank, sum = 0;
  MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  if (sum != i * size + (long)size * (size - 1) / 2) ++wrong;

  static unsigned char block[40000], expected[40000];
  const int root = (int)(i % size);
  if (rank == root) fill(block, (int)sizeof block, root, 99, i);
  MPI_Bcast(block, (int)sizeof block, MPI_BYTE, root, MPI_COMM_WORLD);
  fill(expected, (int)sizeof expected, root, 99, i);
  if (memcmp(block, expected, sizeof block) != 0) ++wrong;

  long out[kMostRanks], in[kMostRanks];
  for (int r = 0; r < size; ++r) out[r] = i * 10000 + rank * 100 + r;
  MPI_Alltoall(out, 1, MPI_LONG, in, 1, MPI_LONG, MPI_COMM_WORLD);
  for (int r = 0; r < size; ++r)
    if (in[r] != i * 10000 + r * 100 + rank) ++wrong;

  MPI_Gather(&mine, 1, MPI_LONG, in, 1, MPI_LONG, root, MPI_COMM_WORLD);
  for (int r = 0; rank == root && r < size; ++r)
    if (in[r] != i + r) ++wrong;
  return wrong;
}

// Window: words 0..kWindowWords-1 are written by the left neighbour; word kWindowWords is a counter
// to which everybody adds, the next one a sum.
static long one_sided(MPI_Win window, long* words, int rank, int size, long i) {
  long wrong = 0;
  const int right = (rank + 1) % size, left = (rank + size - 1) % size;
  static long out[kWindowWords], in[kWindowWords];
  for (int w = 0; w < kWindowWords; ++w) out[w] = i * 1000003 + rank * 7919 + w;
  MPI_Win_fence(0, window);
  MPI_Put(out, kWindowWords, MPI_LONG, right, 0, kWindowWords, MPI_LONG, window);
  MPI_Win_fence(0, window);
  for (int w = 0; w < kWindowWords; ++w)
    if (words[w] != i * 1000003 + left * 7919 + w) ++wrong;
  MPI_Get(in, kWindowWords, MPI_LONG, right, 0, kWindowWords, MPI_LONG, window);
  MPI_Win_fence(0, window);
  for (int w = 0; w < kWindowWords; ++w)
    if (in[w] != i * 1000003 + rank * 7919 + w) ++wrong;  // what this rank put there

  const long one = 1, add = rank + 1;
  long before = -1, counter = -1, sum = -1;
  MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, window);
  MPI_Fetch_and_op(&one, &before, MPI_LONG, 0, kWindowWords, MPI_SUM, window);
  MPI_Accumulate(&add, 1, MPI_LONG, 0, kWindowWords + 1, 1, MPI_LONG, MPI_SUM, window);
  MPI_Win_unlock(0, window);
  if (before < i * size || before >= (i + 1) * size) ++wrong;
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, window);
  MPI_Get(&counter, 1, MPI_LONG, 0, kWindowWords, 1, MPI_LONG, window);
  MPI_Get(&sum, 1, MPI_LONG, 0, kWindowWords + 1, 1, MPI_LONG, window);
  MPI_Win_unlock(0, window);
  if (counter != (i + 1) * size) ++wrong;
  if (sum != (i + 1) * size * (size + 1) / 2) ++wrong;
  MPI_Barrier(MPI_COMM_WORLD);
  return wrong;
}

static void write_result(const char* path, const char* text) {
  printf("%s\n", text);
  FILE* f = path ? fopen(path, "w") : NULL;
  if (path && (!f || fprintf(f, "%s\n", text) < 0 || fclose(f) != 0))
    fprintf(stderr, "mix: %s: cannot be written\n", path);
}

int main(int argc, char** argv) {
  const struct Options o = parse(argc, argv);
  int provided, rank, size;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (provided < MPI_THREAD_MULTIPLE || size > kMostRanks) {
    fprintf(stderr, "mix: thread level %d of %d, %d ranks of at most %d\n", provided,
            MPI_THREAD_MULTIPLE, size, kMostRanks);
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  long* words = NULL;
  MPI_Win window;
  MPI_Win_allocate((kWindowWords + 2) * (MPI_Aint)sizeof(long), sizeof(long), MPI_INFO_NULL,
                   MPI_COMM_WORLD, &words, &window);
  memset(words, 0, (kWindowWords + 2) * sizeof(long));
  MPI_Barrier(MPI_COMM_WORLD);

  static atomic_bool stop = false;
  struct Worker workers[kMostThreads] = {{0}};
  for (int t = 0; t < o.threads; ++t) {
    workers[t].thread = t;
    workers[t].stop = &stop;
    MPI_Comm_dup(MPI_COMM_WORLD, &workers[t].comm);
    pthread_create(&workers[t].id, NULL, exchange, &workers[t]);
  }
  if (rank == 0) printf("started: %d ranks, %d threads each\n", size, o.threads + 1);
  fflush(stdout);

  const double start = now_s();
  double last = start, reported = start, pause = 0;
  long wrong = 0, iterations = 0;
  for (bool more = true; more;) {
    wrong += collectives(rank, size, iterations);
    wrong += one_sided(window, words, rank, size, iterations);
    int over =
        rank == 0 && (now_s() - start >= o.seconds || (o.until && access(o.until, F_OK) == 0));
    MPI_Bcast(&over, 1, MPI_INT, 0, MPI_COMM_WORLD);
    more = !over;
    const double now = now_s();
    if (iterations > 0 && now - last > pause) pause = now - last;
    last = now;
    ++iterations;
    if (rank == 0 && o.report > 0 && now - reported >= o.report) {
      reported = now;
      printf("at %.1f s: iteration %ld, longest pause %.3f s, threads %ld\n", now - start,
             iterations, pause, workers[0].iterations);
      fflush(stdout);
    }
  }
  stop = true;
  long exchanged = 0;
  for (int t = 0; t < o.threads; ++t) {
    pthread_join(workers[t].id, NULL);
    wrong += workers[t].wrong;
    exchanged += workers[t].iterations;
    MPI_Comm_free(&workers[t].comm);
  }
  printf("rank %d %s iterations=%ld exchanges=%ld longest_pause_s=%.3f wrong=%ld\n", rank,
         wrong == 0 ? "ok" : "FAILED", iterations, exchanged, pause, wrong);
  fflush(stdout);
  double longest;
  long all;
  MPI_Allreduce(&pause, &longest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(&wrong, &all, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) {
    char text[512];
    snprintf(text, sizeof text,
             "{\"schema_version\":1,\"ranks\":%d,\"iterations\":%ld,\"exchanges\":%ld,"
             "\"elapsed_s\":%.3f,\"answers_correct\":%s,\"wrong\":%ld,\"longest_pause_s\":%.3f,"
             "\"ok\":%s}",
             size, iterations, exchanged, last - start, all ? "false" : "true", all, longest,
             all ? "false" : "true");
    write_result(o.json, text);
  }
  MPI_Win_free(&window);
  MPI_Finalize();
  return all ? 1 : 0;
}
