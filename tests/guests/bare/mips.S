# -M malta -kernel FILE.elf: entered in kseg0.
    .section .text.start, "ax"
    .set noreorder
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 31                  # ra
    lui $29, %hi(stack_top - 32)
    jal main
    addiu $29, $29, %lo(stack_top - 32)
1:  wait
    b 1b
    nop
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 16
    .skip 16384
stack_top:
