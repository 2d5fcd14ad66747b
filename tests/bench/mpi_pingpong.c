// Two ranks send a message to and fro: one line of JSON a size, half the round trip in microseconds, median of the batches.
//
// usage: mpi_pingpong [ROUNDS]
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { kBatches = 11, kSizes = 3 };

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void to_and_fro(int rank, char* buffer, int bytes, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    if (rank == 0) MPI_Send(buffer, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
    MPI_Recv(buffer, bytes, MPI_BYTE, 1 - rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank == 1) MPI_Send(buffer, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
  }
}

int main(int argc, char** argv) {
  static const int kBytes[kSizes] = {8, 8192, 1 << 20};
  MPI_Init(&argc, &argv);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const int rounds = argc > 1 ? atoi(argv[1]) : 50;
  char* const buffer = calloc(1, (size_t)kBytes[kSizes - 1]);
  if (size != 2 || rounds < 1 || buffer == NULL) {
    fprintf(stderr, "mpi_pingpong: two ranks, and one round or more\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  for (int s = 0; s < kSizes; ++s) {
    const int count = kBytes[s] > 100000 ? rounds / 10 + 1 : rounds;
    double micros[kBatches];
    to_and_fro(rank, buffer, kBytes[s], count);  // connects
    for (int b = 0; b < kBatches; ++b) {
      MPI_Barrier(MPI_COMM_WORLD);
      const double begun = MPI_Wtime();
      to_and_fro(rank, buffer, kBytes[s], count);
      micros[b] = (MPI_Wtime() - begun) * 1e6 / count / 2;
    }
    qsort(micros, kBatches, sizeof *micros, compare);
    if (rank == 0) printf("{\"what\": \"MPI ping-pong %d B\", \"value\": %.2f}\n", kBytes[s], micros[kBatches / 2]);
  }
  free(buffer);
  MPI_Finalize();
  return 0;
}
