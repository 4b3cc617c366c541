# -M s390-ccw-virtio -kernel FILE.elf: entered in 31-bit mode.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 14
    sam64
    # z/Architecture (SIGP order 18), then the registers that a C program may use.
    lghi %r1, 1
    lghi %r0, 0
    larl %r15, stack_top - 160
    lghi %r11, 0
    xc 0(8, %r15), 0(%r15)
    brasl %r14, main
1:  j 1b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 8
    .skip 16384
stack_top:
