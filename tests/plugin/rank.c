/* MPI ranks for the integration test. rank MODE TIME
 *
 * TIME is a number of seconds, or a path: until a file is there.
 *
 *   ring TIME       a token goes round for that long and is changed by every rank; the sum is
 * checked at the end. Prints "ring rank R of N rounds K pause S ok|WRONG", the longest gap between
 * two rounds in seconds spin TIME       MPI_Init, then no MPI call (a compute phase), then
 * MPI_Finalize leave TIME      rank 0 exits without MPI_Finalize after half the time (its own
 * choice, status 0), others stay fork TIME       like ring, but every rank forks children all the
 * time that run on for a while and exit threads TIME    like ring under MPI_THREAD_MULTIPLE, one
 * pair of communicating threads besides
 */
#include <mpi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char* until; /* NULL: seconds count */
static double end;

static int time_is_over(void) { return until ? access(until, F_OK) == 0 : now() >= end; }

static int rank, size;
static volatile int stop_threads;

static void fork_some(long round) {
  if (round % 20 != 0) return;
  const pid_t child = fork();
  if (child == 0) {
    usleep(30 * 1000);
    exit(0); /* runs exit handlers, ours too: must do nothing here */
  }
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

/* Rank 0 decides when the time is over, and says so with the token. */
static int ring(int forks) {
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  long token[2] = {0, 0}; /* sum, stop */
  long rounds = 0, expected = 0;
  double longest = 0, last = now();
  int wrong = 0;
  while (!token[1]) {
    if (rank == 0) {
      token[1] = time_is_over();
      if (size > 1) {
        MPI_Send(token, 2, MPI_LONG, next, 7, MPI_COMM_WORLD);
        MPI_Recv(token, 2, MPI_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      }
    } else {
      MPI_Recv(token, 2, MPI_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      token[0] += rank;
      MPI_Send(token, 2, MPI_LONG, next, 7, MPI_COMM_WORLD);
    }
    rounds++;
    expected += (long)size * (size - 1) / 2;
    if (rank == 0 && token[0] != expected) wrong = 1;
    if (forks) fork_some(rounds);
    const double t = now();
    if (t - last > longest) longest = t - last;
    last = t;
    usleep(500);
  }
  long total = 0, mine = rounds;
  MPI_Allreduce(&mine, &total, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  if (total != rounds * size) wrong = 1;
  printf("ring rank %d of %d rounds %ld pause %.3f %s\n", rank, size, rounds, longest,
         wrong ? "WRONG" : "ok");
  fflush(stdout);
  return wrong;
}

static void* talk(void* communicator) {
  MPI_Comm comm = *(MPI_Comm*)communicator;
  long value = rank;
  while (1) {
    long sum = 0, stop = stop_threads, any = 0;
    MPI_Allreduce(&value, &sum, 1, MPI_LONG, MPI_SUM, comm);
    if (sum != (long)size * (size - 1) / 2) abort();
    MPI_Allreduce(&stop, &any, 1, MPI_LONG, MPI_MAX, comm);
    if (any) return NULL;
    usleep(2000);
  }
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "ring";
  const double seconds = argc > 2 ? atof(argv[2]) : 1;
  until = argc > 2 && argv[2][0] == '/' ? argv[2] : NULL;
  const int threads = strcmp(mode, "threads") == 0;
  int provided = 0, status = 0;
  MPI_Init_thread(&argc, &argv, threads ? MPI_THREAD_MULTIPLE : MPI_THREAD_SINGLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  end = now() + seconds;
  if (strcmp(mode, "spin") == 0) {
    while (!time_is_over()) usleep(100);
  } else if (strcmp(mode, "leave") == 0) {
    usleep((useconds_t)(seconds * 5e5));
    if (rank == 0) _exit(0);
    usleep((useconds_t)(seconds * 5e5));
    _exit(0);
  } else if (threads) {
    MPI_Comm other;
    pthread_t thread;
    if (provided != MPI_THREAD_MULTIPLE) return 3;
    MPI_Comm_dup(MPI_COMM_WORLD, &other);
    pthread_create(&thread, NULL, talk, &other);
    status = ring(0);
    stop_threads = 1;
    pthread_join(thread, NULL);
    MPI_Comm_free(&other);
  } else {
    status = ring(strcmp(mode, "fork") == 0);
  }
  MPI_Finalize();
  if (rank == 0) printf("finalized\n");
  return status;
}
