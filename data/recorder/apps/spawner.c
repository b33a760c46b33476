/* spawner.c - posix_spawn (CLONE_VM|CLONE_VFORK) of static programs from a process with a heap. */
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
int main(void) {
  char *av[] = {"/t/true_s", 0}, *ev[] = {0}, *h = malloc(1 << 20);
  memset(h, 1, 1 << 20);
  for (int i = 0; i < 6; i++) {
    pid_t c; int st;
    if (posix_spawn(&c, av[0], 0, 0, av, ev)) return 1;
    h[i * 4096]++;
    if (waitpid(c, &st, 0) != c || st) return 2;
  }
  return 0;
}
