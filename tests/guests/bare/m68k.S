| -M virt -kernel FILE.elf: entered in supervisor mode with the MMU off.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 24                  | pc
    lea stack_top, %sp
    moveq #0, %d0
    move.l %d0, %fp
    jsr main
1:  bra 1b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 8
    .skip 16384
stack_top:
