/*
 * A guest without an operating system whose call paths and shares are known.
 *
 * Its time goes to three leaf functions that run the same loop, 5, 3 and 2 parts of it, each behind callers of its own:
 *
 *     main, serve, middle_five, leaf_five
 *     main, serve, middle_three, recurse (DEPTH times), leaf_three
 *     main, serve, dispatch, leaf_two (through a pointer)
 *
 * It prints "ready" when it begins and "done" after ROUNDS rounds (0: never), and then waits for ever in wait_for_ever.
 * loops[] counts what each leaf has done. With TIMER (x86-64 in ring 3) a timer interrupts it, and it rests now and then.
 */
#include "machine.h"

#define NOINLINE __attribute__((noinline, noclone, noipa))
#define UNIT 2000u

volatile unsigned long loops[3];
volatile unsigned sink;
volatile unsigned long rounds = ROUNDS;

static inline __attribute__((always_inline)) void burn(unsigned parts, int which)
{
    unsigned value = sink;

    for (unsigned i = 0; i < parts * UNIT; i++) {
        value = value * 1664525u + 1013904223u;
        __asm__ volatile("" : "+r"(value));
    }
    sink = value;
    loops[which] += parts * UNIT;
}

NOINLINE void leaf_five(void)
{
    burn(5, 0);
}

NOINLINE void leaf_three(void)
{
    burn(3, 1);
}

NOINLINE void leaf_two(void)
{
    burn(2, 2);
}

NOINLINE void middle_five(void)
{
    leaf_five();
    sink += 1;
}

NOINLINE void recurse(unsigned depth)
{
    if (depth > 1)
        recurse(depth - 1);
    else
        leaf_three();
    sink += depth;
}

NOINLINE void middle_three(void)
{
    recurse(DEPTH);
    sink += 1;
}

NOINLINE void dispatch(void (*leaf)(void))
{
    leaf();
    sink += 1;
}

NOINLINE void serve(void)
{
    middle_five();
    middle_three();
    dispatch(leaf_two);
    sink += 1;
}

NOINLINE void print(const char *text)
{
    while (*text)
        put_character(*text++);
}

NOINLINE void wait_for_ever(void)
{
    for (;;)
        wait();
}

#ifdef TIMER
#include "timer.h"
#endif

int main(void)
{
#ifdef TIMER
    start_timer();
#endif
    print("ready\n");
    for (unsigned long round = 0; !rounds || round < rounds; round++) {
        serve();
#ifdef TIMER
        if (round % WORK == WORK - 1)
            rest();
#endif
    }
    print("done\n");
    wait_for_ever();
    return 0;
}
