/* Known call paths, each with a known share of the program's time in user mode: the truth for user stacks.
 *
 * All work is done by one leaf, spin(), in units, so that a share is a share of units: whoever calls it, a unit costs the same.
 * A round is 100 units; the unit is long enough (about a millisecond under TCG) for everything else to be lost beside it.
 *
 *     units  path, from main
 *     25     run, alpha, beta, gamma_, spin
 *     15     run, alpha, delta, spin
 *     12     run, recurse (10 times), spin
 *     10     run, sort, [libc: qsort ...], compare, spin
 *      8     run, signals, [libc: raise ...], [signal trampoline], on_signal, spin
 *     10     [libc: clone, start_thread], thread_main, thread_work, spin            (a thread of its own, one at a time)
 *     12     run, wide, wider, spin                                                 (frames of 3 KiB)
 *      8     run, pointer, (one of two functions through a pointer: left, right), spin
 *      -     run, reads, [libc: read], system call                                  (in the kernel: no share is promised)
 *
 * With an argument it runs 30 rounds and prints the processor time of each path instead of running for ever.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define KEPT __attribute__((noipa))
#define UNIT 60000
#define DEPTH 10
#define COMPARES 5

static int zero_file;
static int compares_left;
static volatile unsigned long sink;

KEPT static void spin(int units)
{
    unsigned long x = 88172645463325252ul;
    for (long i = (long)units * UNIT; i > 0; i--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
    /* A saved register makes a frame, which compilers leave out of leaves even where frame pointers are asked for: without
       tables the leaf's caller could not be known then. */
    __asm__ volatile("" : : : "rbx");
}

KEPT static void gamma_(int units) { spin(units); }
KEPT static void beta(int units) { gamma_(units); }
KEPT static void delta(int units) { spin(units); }

KEPT static void alpha(int through_beta)
{
    if (through_beta)
        beta(25);
    else
        delta(15);
}

KEPT static int recurse(int depth, int units)
{
    if (depth > 1)
        return recurse(depth - 1, units) + 1;
    spin(units);
    return depth;
}

KEPT static int compare(const void *left, const void *right)
{
    /* Only the first few work: how many comparisons there are is the C library's business. */
    if (compares_left > 0) {
        compares_left--;
        spin(10 / COMPARES);
    }
    return *(const int *)left - *(const int *)right;
}

KEPT static void sort(void)
{
    int values[16];
    for (int i = 0; i < 16; i++)
        values[i] = (i * 7) % 16;
    compares_left = COMPARES;
    qsort(values, 16, sizeof values[0], compare);
    sink = (unsigned long)values[3];
}

KEPT static void on_signal(int number)
{
    (void)number;
    spin(8);
}

KEPT static void signals(void) { raise(SIGUSR1); }

KEPT static void thread_work(void) { spin(10); }

KEPT static void *thread_main(void *argument)
{
    thread_work();
    return argument;
}

KEPT static void threads(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_main, NULL) != 0)
        abort();
    pthread_join(thread, NULL);
}

KEPT static void wider(int units)
{
    volatile char room[3072];
    room[units] = 1;
    spin(units);
    sink = (unsigned long)room[units];
}

KEPT static void wide(int units)
{
    volatile char room[3072];
    room[units] = 1;
    wider(units);
    sink = (unsigned long)room[units];
}

KEPT static void left(int units) { spin(units); }
KEPT static void right(int units) { spin(units); }

KEPT static void pointer(void)
{
    static void (*volatile const chosen[2])(int) = {left, right};
    chosen[0](3);
    chosen[1](5);
}

KEPT static void reads(void)
{
    static char buffer[1 << 16];
    for (int i = 0; i < 60; i++)
        if (read(zero_file, buffer, sizeof buffer) != sizeof buffer)
            abort();
}

#define PATHS 9

KEPT static void run(int path)
{
    switch (path) {
    case 0: alpha(1); break;
    case 1: alpha(0); break;
    case 2: recurse(DEPTH, 12); break;
    case 3: sort(); break;
    case 4: signals(); break;
    case 5: threads(); break;
    case 6: wide(12); break;
    case 7: pointer(); break;
    default: reads(); break;
    }
}

static double used_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int count, char **arguments)
{
    static const char *const names[PATHS] = {"beta", "delta", "recurse", "sort", "signals", "thread", "wide", "pointer", "reads"};
    double times[PATHS] = {0}, total = 0;
    struct sigaction action = {.sa_handler = on_signal};

    zero_file = open("/dev/zero", O_RDONLY);
    if (zero_file < 0 || sigaction(SIGUSR1, &action, NULL) != 0)
        return 1;
    /* Not atoi: newer C libraries would bind it to a symbol that the guest's has not. */
    int rounds = count > 1 ? 30 : -1;
    (void)arguments;
    for (int round = 0; round != rounds; round = rounds < 0 ? 0 : round + 1) {
        for (int path = 0; path < PATHS; path++) {
            double before = used_s();
            run(path);
            times[path] += used_s() - before;
        }
    }
    for (int path = 0; path < PATHS - 1; path++)
        total += times[path];
    for (int path = 0; path < PATHS; path++)
        printf("%s %.2f\n", names[path], 100 * times[path] / total);
    return 0;
}
