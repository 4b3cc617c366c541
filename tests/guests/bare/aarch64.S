# -M virt -kernel FILE.elf: entered at EL1 with the MMU off.
    .section .text.start, "ax"
    .globl _start
    .type _start, %function
_start:
    .cfi_startproc
    .cfi_undefined x30
    adrp x0, stack_top
    add sp, x0, :lo12:stack_top
    bl main
1:  wfi
    b 1b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 16
    .skip 16384
stack_top:
