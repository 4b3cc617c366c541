! -M leon3_generic -kernel FILE.elf: entered by a few instructions of QEMU's own, with the MMU off.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 15                  ! %o7
    sethi %hi(stack_top - 96), %sp
    call main
    or %sp, %lo(stack_top - 96), %sp
1:  ba 1b
    nop
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 8
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
