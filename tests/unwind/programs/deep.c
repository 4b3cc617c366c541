#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdio.h>
#include <alloca.h>
static volatile int sink;
__attribute__((noinline)) static void stop_here(void) { puts("ready"); fflush(stdout); for (;;) pause(); }
struct big { long v[40]; };
__attribute__((noinline)) static int with_frame(struct big b, int n) { volatile char buffer[200]; memset((void *)buffer, n, sizeof buffer); stop_here(); return buffer[3] + b.v[2]; }
__attribute__((noinline)) static int with_alloca(int n) { char *p = alloca(n * 33); memset(p, 1, n * 33); struct big b = {{1}}; int r = with_frame(b, n); return r + p[5]; }
__attribute__((noinline)) static int aligned(int n) { __attribute__((aligned(64))) volatile char x[64]; x[n & 63] = 1; char *p = alloca(n + 10); memset(p, 2, n + 10); int r = with_alloca(n) + x[3]; return r + p[1]; }
__attribute__((noinline)) static int recurse(int n, int a, int b, int c, int d, int e, int f, int g) { if (n == 0) return aligned(a); int r = recurse(n - 1, a + 1, b * 3, c + 2, d ^ 5, e, f, g) + a * b + c * d + e * f * g; sink += r; return r; }
static int compare(const void *a, const void *b) { recurse(5, 1, 2, 3, 4, 5, 6, 7); return *(const int *)a - *(const int *)b; }
int main(void) { int v[20]; for (int i = 0; i < 20; i++) v[i] = 20 - i; qsort(v, 20, sizeof v[0], compare); return sink; }
