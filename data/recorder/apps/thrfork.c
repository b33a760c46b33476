/* thrfork.c - a threaded process that forks: 3 threads that map, write, protect and unmap memory
 * while the main thread forks 4 children, which write to half of what they inherit. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#define PG 4096
static volatile int stop;
static void *work(void *arg) {
  long id = (long)arg;
  for (int i = 0; i < 12 || !stop; i++) {
    if (i >= 40) break;
    size_t n = 8 + 4 * id + i % 5;
    char *p = mmap(0, n * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t k = 0; k < n; k++) p[k * PG] = 1;
    mprotect(p, n / 2 * PG, PROT_READ);
    char *h = malloc(3000 + 500 * i); memset(h, 1, 3000); free(h);
    munmap(p, n * PG);
    usleep(1000);
  }
  return 0;
}
int main(void) {
  pthread_t t[3];
  char *m = mmap(0, 60 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 60; i++) m[i * PG] = 1;
  for (long i = 0; i < 3; i++) pthread_create(&t[i], 0, work, (void *)i);
  for (int c = 0; c < 4; c++) {
    pid_t k = fork();
    if (!k) { for (int i = 0; i < 30; i++) m[2 * i * PG] = 2; _exit(0); }
    for (int i = 0; i < 10; i++) m[i * PG] = 3;
    waitpid(k, 0, 0);
  }
  stop = 1;
  for (int i = 0; i < 3; i++) pthread_join(t[i], 0);
  return 0;
}
