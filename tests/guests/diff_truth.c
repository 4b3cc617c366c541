/* A round of work by functions of known cost, again and again: what a comparison of two recordings has to find.
 *
 * As the first process of an initramfs. With the word "slow" on the kernel's command line, which the kernel hands on as an argument,
 * grind() costs 30 % more. A round takes some milliseconds under TCG.
 *
 *     units  path, from main
 *     40     turn, grind          52 where it is slow
 *     25     turn, knead
 *     25     turn, sift
 *     10     turn, wrap, knead    (so that knead has two callers)
 *     -      turn, ask, [libc: getppid], system calls
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define KEPT __attribute__((noipa))
#define UNIT 400
#define CALLS 10

static volatile unsigned long sink;

#define WORKER(name, shift)                                                                                                            \
    KEPT static void name(int units)                                                                                                   \
    {                                                                                                                                  \
        unsigned long x = 88172645463325252ul;                                                                                         \
        for (long i = (long)units * UNIT; i > 0; i--) {                                                                                \
            x ^= x << 13;                                                                                                              \
            x ^= x >> (shift);                                                                                                         \
            x ^= x << 17;                                                                                                              \
        }                                                                                                                              \
        sink = x;                                                                                                                      \
    }

WORKER(knead, 7)
WORKER(grind, 8)
WORKER(sift, 9)

KEPT static void wrap(int units) { knead(units); }

KEPT static void ask(int times)
{
    for (int i = 0; i < times; i++)
        sink += (unsigned long)getppid();
}

KEPT static void turn(int slow)
{
    grind(slow ? 52 : 40);
    knead(25);
    sift(25);
    wrap(10);
    ask(CALLS);
}

int main(int count, char **words)
{
    int slow = 0;
    for (int i = 1; i < count; i++)
        slow |= strcmp(words[i], "slow") == 0;
    for (unsigned long round = 0;; round++) {
        turn(slow);
        if (round == 100) {
            puts("diff-truth: at work");
            fflush(stdout);
        }
    }
}
