@ -M virt -kernel FILE.elf: entered in supervisor mode with the MMU off.
    .section .text.start, "ax"
    .syntax unified
    .arm
    .globl _start
    .type _start, %function
_start:
    .fnstart
    .cantunwind
    ldr sp, =stack_top
    bl main
1:  wfi
    b 1b
    .ltorg
    .fnend
    .size _start, . - _start

    .bss
    .balign 8
    .skip 16384
stack_top:
