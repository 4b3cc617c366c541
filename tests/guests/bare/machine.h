/* What the guests need of their machines: a character on the first serial port, and waiting. */
#ifndef DEPTH
#define DEPTH 6
#endif
#ifndef ROUNDS
#define ROUNDS 0
#endif

#define REGISTER(type, address) (*(volatile type *)(address))

#if defined(__x86_64__) || defined(__i386__)
static inline void put_character(char character)
{
    unsigned char status;

    do
        __asm__ volatile("inb %1, %0" : "=a"(status) : "Nd"((unsigned short)0x3fd));
    while (!(status & 0x20));
    __asm__ volatile("outb %0, %1" : : "a"(character), "Nd"((unsigned short)0x3f8));
}

static inline void wait(void)
{
#ifdef RING
    __asm__ volatile("pause");
#else
    __asm__ volatile("hlt");
#endif
}

#elif defined(__arm__) && __ARM_ARCH_PROFILE == 'M'
static inline void put_character(char character)
{
    REGISTER(unsigned, 0x40004010ul) = 16; /* CMSDK's UART: the least divisor */
    REGISTER(unsigned, 0x40004008ul) = 1; /* transmits */
    while (REGISTER(unsigned, 0x40004004ul) & 1)
        ;
    REGISTER(unsigned, 0x40004000ul) = (unsigned char)character;
}

static inline void wait(void)
{
    __asm__ volatile("wfi");
}

#elif defined(__aarch64__) || defined(__arm__)
static inline void put_character(char character)
{
    REGISTER(unsigned, 0x09000000ul) = (unsigned char)character; /* PL011 */
}

static inline void wait(void)
{
    __asm__ volatile("wfi");
}

#elif defined(__riscv)
static inline void put_character(char character)
{
    REGISTER(unsigned char, 0x10000000ul) = character; /* 16550 */
}

static inline void wait(void)
{
    __asm__ volatile("wfi");
}

#elif defined(__powerpc64__)
static inline void put_character(char character)
{
    register unsigned long call __asm__("r3") = 0x58; /* H_PUT_TERM_CHAR (LoPAPR 14.5.1) */
    register unsigned long terminal __asm__("r4") = 0;
    register unsigned long size __asm__("r5") = 1;
    register unsigned long text __asm__("r6") = (unsigned long)(unsigned char)character << 56;
    register unsigned long rest __asm__("r7") = 0;

    __asm__ volatile("sc 1"
                     : "+r"(call), "+r"(terminal), "+r"(size), "+r"(text), "+r"(rest)
                     :
                     : "r0", "r8", "r9", "r10", "r11", "r12", "ctr", "xer", "cr0", "cr1", "cr5", "cr6", "cr7", "memory");
}

static inline void wait(void)
{
    __asm__ volatile("or 1, 1, 1"); /* low priority */
}

#elif defined(__powerpc__)
static inline void put_character(char character)
{
    REGISTER(unsigned char, 0xef600300ul) = character; /* 16550 of the 440EP */
}

static inline void wait(void)
{
    __asm__ volatile("nop");
}

#elif defined(__mips__)
static inline void put_character(char character)
{
    REGISTER(unsigned char, 0xb80003f8ul) = character; /* 16550 on Malta's ISA bus */
}

static inline void wait(void)
{
    __asm__ volatile("wait");
}

#elif defined(__s390x__)
/* A service call that writes to the ASCII console (SCLP, as QEMU's hw/char/sclpconsole.c takes it). */
static inline void put_character(char character)
{
    static struct {
        unsigned short size;
        unsigned char function, control[3];
        unsigned short answer;
        unsigned short event_size;
        unsigned char type, flags;
        unsigned short reserved;
        char text;
    } __attribute__((packed, aligned(4096))) block;

    block.size = 8 + 7;
    block.function = 0;
    block.answer = 0;
    block.event_size = 7;
    block.type = 0x1a;
    block.flags = 0;
    block.text = character;
    __asm__ volatile(".insn rre, 0xb2200000, %0, %1" : : "d"(0x00760005u), "a"(&block) : "cc", "memory");
}

static inline void wait(void)
{
    __asm__ volatile("nopr");
}

#elif defined(__m68k__)
static inline void put_character(char character)
{
    REGISTER(unsigned, 0xff008000ul) = (unsigned char)character; /* goldfish tty */
}

static inline void wait(void)
{
    __asm__ volatile("nop");
}

#elif defined(__sparc__)
static inline void put_character(char character)
{
#ifdef __arch64__
    REGISTER(unsigned char, 0x1fe020003f8ul) = character; /* 16550 on the ISA bus */
#else
    REGISTER(unsigned, 0x80000108ul) = 2; /* GRLIB's APBUART: transmits */
    REGISTER(unsigned, 0x80000100ul) = (unsigned char)character;
#endif
}

static inline void wait(void)
{
    __asm__ volatile("nop");
}
#endif
