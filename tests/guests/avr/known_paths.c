/*
 * A guest without an operating system, whose call paths and shares are known: a quarter of its time goes to
 *
 *     _start, main, alpha, shared
 *     _start, main, beta, helper (inlined into beta), shared: the other three quarters
 *
 * The names of the lines are what tests/qemu/test_gdb_engine.py looks for.
 */
#define NOINLINE __attribute__((noinline, noclone))

volatile unsigned long counter;

NOINLINE void shared(unsigned int rounds)
{
    while (rounds--)
        counter++; /* line of shared */
}

NOINLINE void alpha(void)
{
    shared(1000); /* line of alpha */
    counter++;
}

static inline __attribute__((always_inline)) void helper(unsigned int rounds)
{
    shared(rounds); /* line of helper */
    counter++;
}

NOINLINE void beta(void)
{
    helper(3000); /* line of beta */
    counter++;
}

int main(void)
{
    for (;;) {
        alpha();
        beta(); /* line of main */
    }
}
