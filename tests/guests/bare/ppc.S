# -M bamboo -kernel FILE.elf: entered with 2 GiB and the UART mapped at their own addresses.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined lr
    lis 1, (stack_top - 64)@ha
    addi 1, 1, (stack_top - 64)@l
    li 0, 0
    stw 0, 0(1)
    stw 0, 4(1)
    bl main
1:  b 1b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 16
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
