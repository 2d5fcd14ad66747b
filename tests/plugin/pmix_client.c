/* A PMIx client without MPI, for the corners of a process's life. pmix_client MODE
 *
 *   cycle   nested PMIx_Init/PMIx_Finalize, three lives one after the other
 *   exec    PMIx_Init, then exec of itself with "after-exec", which begins nothing
 *   fork    a child of an initialized process ends through exit() and its handlers, another through
 * exec quit    exit() without finalize
 *
 * Prints "pid P ready" when initialized, and waits for SECONDS (second argument) before it goes on.
 */
#include <pmix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds;

static void need(pmix_status_t status, const char* what) {
  if (status == PMIX_SUCCESS) return;
  printf("%s: %d\n", what, status);
  exit(9);
}

static void linger(void) {
  printf("pid %d ready\n", (int)getpid());
  fflush(stdout);
  usleep((useconds_t)(seconds * 1e6));
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "cycle";
  seconds = argc > 2 ? atof(argv[2]) : 0.3;
  pmix_proc_t self;
  if (strcmp(mode, "after-exec") == 0) {
    linger();
    return 0;
  }
  need(PMIx_Init(&self, NULL, 0), "init");
  if (strcmp(mode, "exec") == 0) {
    execl("/proc/self/exe", argv[0], "after-exec", argc > 2 ? argv[2] : "0.3", (char*)NULL);
    return 8;
  }
  if (strcmp(mode, "quit") == 0) {
    linger();
    exit(0);
  }
  if (strcmp(mode, "fork") == 0) {
    int status = 0;
    if (fork() == 0) exit(0);
    wait(&status);
    if (status != 0) return 7;
    if (fork() == 0) execl("/bin/true", "true", (char*)NULL);
    wait(&status);
    if (status != 0) return 6;
    linger();
    need(PMIx_Finalize(NULL, 0), "finalize");
    return 0;
  }
  need(PMIx_Init(&self, NULL, 0), "second init");
  need(PMIx_Finalize(NULL, 0), "first finalize");
  linger(); /* still initialized once, so still a member */
  need(PMIx_Finalize(NULL, 0), "second finalize");
  for (int life = 0; life < 2; life++) {
    need(PMIx_Init(NULL, NULL, 0), "later init");
    need(PMIx_Finalize(NULL, 0), "later finalize");
  }
  printf("done\n");
  return 0;
}
