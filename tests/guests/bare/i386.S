# QEMU's -kernel takes an ELF file with this note (Xen's PVH ABI) and enters it in 32-bit protected mode without paging.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .text
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 8                   # eip
    movl $stack_top, %esp
    xorl %ebp, %ebp
    call main
1:  jmp 1b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 16
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
