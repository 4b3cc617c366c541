/* What the guests need of their machines: a character on the first serial port, and waiting. */
#ifndef DEPTH
#define DEPTH 6
#endif
#ifndef ROUNDS
#define ROUNDS 0
#endif

#if defined(__x86_64__) || defined(__i386__)
static inline void put_character(char character)
{
    unsigned char status;

    do
        __asm__ volatile("inb %1, %0" : "=a"(status) : "Nd"((unsigned short)0x3fd));
    while (!(status & 0x20));
    __asm__ volatile("outb %0, %1" : : "a"(character), "Nd"((unsigned short)0x3f8));
}

static inline void prepare(void)
{
}

static inline void wait(void)
{
#ifdef RING
    __asm__ volatile("pause");
#else
    __asm__ volatile("hlt");
#endif
}
#endif
