/* gcheap.c - what a generational collector does to its heap: write barriers by mprotect with faults
 * handled in a signal handler, MADV_DONTNEED and MADV_FREE of freed regions, a heap that grows by
 * mremap, a double-mapped memfd, guard pages. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define PG 4096UL
static char *heap;
static unsigned long n = 96;
static volatile int dirty;
static void barrier(int s, siginfo_t *i, void *u) {
  mprotect((void *)((uintptr_t)i->si_addr & ~(PG - 1)), PG, PROT_READ | PROT_WRITE);
  dirty++;
}
static unsigned seed = 1;
static unsigned rnd(unsigned m) { seed = seed * 1103515245 + 12345; return (seed >> 16) % m; }
int main(void) {
  struct sigaction a = {.sa_sigaction = barrier, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &a, 0);
  heap = mmap(0, n * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (unsigned long i = 0; i < n; i++) heap[i * PG] = 1;
  for (int cycle = 0; cycle < 6; cycle++) {
    mprotect(heap, n * PG, PROT_READ);                             /* arm the barrier */
    for (int i = 0; i < 40; i++) heap[rnd(n) * PG] = cycle;        /* mutate: a fault each */
    mprotect(heap, n * PG, PROT_READ | PROT_WRITE);                /* stop the world */
    unsigned at = rnd(n - 24);
    madvise(heap + at * PG, 16 * PG, cycle & 1 ? MADV_FREE : MADV_DONTNEED);
    for (int i = 0; i < 16; i += 2) heap[(at + i) * PG] = 1;
    char *grown = mremap(heap, n * PG, (n + 24) * PG, MREMAP_MAYMOVE);
    if (grown == MAP_FAILED) return 1;
    heap = grown;
    for (unsigned long i = n; i < n + 24; i++) heap[i * PG] = 1;
    n += 24;
    char *guard = mmap(0, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guard[0] = guard[PG] = 1; mprotect(guard, PG, PROT_NONE); munmap(guard, 4 * PG);
  }
  int fd = memfd_create("semi", 0);
  if (ftruncate(fd, 32 * PG)) return 2;
  char *x = mmap(0, 32 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  char *y = mmap(0, 32 * PG, PROT_READ, MAP_SHARED, fd, 0);
  int s = 0;
  for (int i = 0; i < 32; i++) x[i * PG] = i;
  for (int i = 0; i < 32; i++) s += y[i * PG];
  mprotect(x, 16 * PG, PROT_READ);
  if (ftruncate(fd, 8 * PG)) return 3;                             /* unmaps pages of both mappings */
  munmap(y, 32 * PG);
  return dirty < 30 || s != 496;
}
