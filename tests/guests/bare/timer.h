/* A periodic timer of 1 kHz (the PIT), a rest until its next tick, and what the guest itself knows of its time. */
#ifndef WORK
#define WORK 50
#endif

struct {
    unsigned long started, ticks, close_ticks, last_tick, in_ticks, rests, in_rests;
} volatile account; /* times in the TSC's counts; close_ticks: those that came within half a period of the last */

volatile unsigned long half_period;

static inline unsigned long now(void)
{
    unsigned low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (unsigned long)high << 32 | low;
}

static inline void out(unsigned short port, unsigned char value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

NOINLINE void on_tick(void)
{
    unsigned long begin = now();

    if (begin - account.last_tick < half_period)
        account.close_ticks++;
    account.last_tick = begin;
    account.ticks++;
    out(0x20, 0x20);
    account.in_ticks += now() - begin;
}

NOINLINE void rest(void)
{
    unsigned long begin = now();

    __asm__ volatile("int $0x80" : : : "memory");
    account.rests++;
    account.in_rests += now() - begin;
}

static void start_timer(void)
{
    unsigned long begin, ticks;

    /* 8259: interrupts from 0x20 on, the timer alone; 8254: channel 0, mode 2. */
    out(0x20, 0x11);
    out(0x21, 0x20);
    out(0x21, 4);
    out(0x21, 1);
    out(0x21, 0xfe);
    out(0xa1, 0xff);
    out(0x43, 0x34);
    out(0x40, 1193 & 0xff);
    out(0x40, 1193 >> 8);
    /* How long a period is: of 100. */
    for (ticks = account.ticks; account.ticks == ticks;)
        ;
    begin = now();
    for (ticks = account.ticks; account.ticks < ticks + 100;)
        ;
    half_period = (now() - begin) / 200;
    account.started = now();
}
