# QEMU's -kernel takes an ELF file with this note (Xen's PVH ABI) and enters it in 32-bit protected mode without paging.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .text
    .code32
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 16                  # rip
    movl $stack_top, %esp
    # The first GiB at its own addresses, in pages of 2 MiB.
    movl $level3 + 7, level4
    movl $level2 + 7, level3
    movl $level2, %edi
    movl $0x87, %eax
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    cmpl $level2 + 0x1000, %edi
    jne 1b
    # CR4.PAE, OSFXSR and OSXMMEXCPT, CR3, EFER.LME, CR0.PG (Intel SDM volume 3, 10.8.5).
    movl $0x620, %eax
    movl %eax, %cr4
    movl $level4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    lgdt table_pointer
    ljmp $8, $long_mode
    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %ebp, %ebp
#ifdef RING
    # Ring 3 with the right to ports (IOPL), where some hypervisors run code that they would emulate in ring 0.
    movq $stack_top, %rax
    pushq $0x1b
    pushq %rax
    pushq $0x3002
    pushq $0x23
    pushq $3f
    iretq
3:
#endif
    call main
2:  jmp 2b
    .cfi_endproc
    .size _start, . - _start

    .section .rodata
    .balign 8
table:
    .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x0000f20000000000, 0x0020fa0000000000
table_pointer:
    .word table_pointer - table - 1
    .quad table

    .bss
    .balign 4096
level4: .skip 4096
level3: .skip 4096
level2: .skip 4096
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
