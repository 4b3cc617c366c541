/* Known call paths of a 32-bit program, without a C library, as compilers seldom come with a 32-bit one. See user_truth.c.
 *
 *     units  path, from _start
 *     50     run, alpha, beta, spin
 *     30     run, recurse (10 times), spin
 *     20     run, delta, spin
 *      -     run, reads, system_call                                 (in the kernel: int 0x80 read of /dev/zero)
 */
#define KEPT __attribute__((noipa))

static volatile unsigned long sink;

KEPT static void spin(int units)
{
    unsigned long x = 2463534242ul;
    for (long i = (long)units * 60000; i > 0; i--) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
    }
    sink = x;
}

KEPT static long system_call(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
    return result;
}

KEPT static void beta(int units) { spin(units); }
KEPT static void alpha(int units) { beta(units); }
KEPT static void delta(int units) { spin(units); }

KEPT static int recurse(int depth, int units)
{
    if (depth > 1)
        return recurse(depth - 1, units) + 1;
    spin(units);
    return depth;
}

KEPT static void reads(void)
{
    static char buffer[1 << 16];
    static const char path[] = "/dev/zero";
    long file = system_call(5, (long)path, 0, 0); /* open */
    for (int i = 0; i < 60; i++)
        system_call(3, file, (long)buffer, sizeof buffer); /* read */
    system_call(6, file, 0, 0); /* close */
}

KEPT static void run(void)
{
    for (;;) {
        alpha(50);
        recurse(10, 30);
        delta(20);
        reads();
    }
}

/* As the C library's: the outermost frame says that there is none above it. */
__asm__(".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined eip\n"
        "xor %ebp, %ebp\n"
        "and $-16, %esp\n"
        "call enter\n"
        "hlt\n"
        ".cfi_endproc\n"
        ".size _start, . - _start\n");

KEPT __attribute__((used)) void enter(void) { run(); }
