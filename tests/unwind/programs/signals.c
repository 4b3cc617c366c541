#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <pthread.h>
#include <ucontext.h>
static volatile int sink;
static int started;
static ucontext_t main_context, other;
__attribute__((noinline)) static void inner(void) { if (sink == 12345) return; puts("ready"); fflush(stdout); for (;;) pause(); }
static void in_context(void) { inner(); sink++; }
static void on_usr1(int s) { (void)s; getcontext(&other); static char stack[65536]; other.uc_stack.ss_sp = stack; other.uc_stack.ss_size = sizeof stack; other.uc_link = &main_context; makecontext(&other, in_context, 0); inner(); sink++; }
static void on_segv(int s) { (void)s; raise(SIGUSR1); sink++; }
static void *other_thread(void *p) { __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST); for (;;) { pause(); sink++; } return p; }
static void *ctx_thread(void *p) { static ucontext_t m, o; static char stack[65536]; getcontext(&o); o.uc_stack.ss_sp = stack; o.uc_stack.ss_size = sizeof stack; o.uc_link = &m; makecontext(&o, (void (*)(void))other_thread, 0); swapcontext(&m, &o); return p; }
__attribute__((noinline)) static int crash(int *p) { int r = *p; sink++; return r; }
int main(void) {
  pthread_t t; pthread_create(&t, 0, other_thread, 0); pthread_create(&t, 0, ctx_thread, 0);
  stack_t ss = { .ss_sp = malloc(65536), .ss_size = 65536 }; sigaltstack(&ss, 0);
  struct sigaction a = { .sa_handler = on_segv, .sa_flags = SA_ONSTACK }, b = { .sa_handler = on_usr1 };
  sigaction(SIGSEGV, &a, 0); sigaction(SIGUSR1, &b, 0);
  while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < 2) usleep(1000);
  return crash((int *)8);
}
