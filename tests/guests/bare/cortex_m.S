@ -M mps2-an385 -kernel FILE.elf: a Cortex-M3, which takes its stack and its first instruction from the vectors at 0.
    .syntax unified
    .thumb
    .section .text.start, "ax"
    .word stack_top
    .word _start

    .globl _start
    .type _start, %function
    .thumb_func
_start:
    .fnstart
    .cantunwind
    bl main
1:  wfi
    b 1b
    .fnend
    .size _start, . - _start

    .bss
    .balign 8
    .skip 16384
stack_top:
