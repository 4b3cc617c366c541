# QEMU's -kernel takes an ELF file with this note (Xen's PVH ABI) and enters it in 32-bit protected mode without paging.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .macro gate vector, handler, attributes
    movl $\handler, %eax
    movw %ax, interrupts + 16 * \vector
    movw $8, interrupts + 16 * \vector + 2
    movw $\attributes, interrupts + 16 * \vector + 4
    shrl $16, %eax
    movw %ax, interrupts + 16 * \vector + 6
    .endm

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
#ifdef TIMER
    gate 0x20, tick_entry, 0x8e00
    gate 0x80, rest_entry, 0xee00
    lidt interrupts_pointer
    movl $task_state, %eax
    movw %ax, task_descriptor + 2
    shrl $16, %eax
    movb %al, task_descriptor + 4
    movl $0x28, %eax
    ltr %ax
#endif
#ifdef RING
    # Ring 3 with the right to ports (IOPL), where some hypervisors run code that they would emulate in ring 0.
    pushq $0x1b
    pushq $stack_top
#ifdef TIMER
    movb $0xff, %al                     # no interrupt before the 8259 is set up
    outb %al, $0x21
    pushq $0x3202
#else
    pushq $0x3002
#endif
    pushq $0x23
    pushq $3f
    iretq
3:
#endif
    call main
2:  jmp 2b
    .cfi_endproc
    .size _start, . - _start

#ifdef TIMER
    # What the processor has pushed: rip, cs, rflags, rsp, ss (Intel SDM volume 3, 6.14.2).
    .macro entry_frame
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_def_cfa rsp, 40
    .cfi_offset rip, -40
    .cfi_offset rsp, -16
    .endm

    .type tick_entry, @function
tick_entry:
    entry_frame
    .irp register, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11
    pushq %\register
    .cfi_adjust_cfa_offset 8
    .endr
    cld
    call on_tick
    .irp register, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    popq %\register
    .cfi_adjust_cfa_offset -8
    .endr
    iretq
    .cfi_endproc
    .size tick_entry, . - tick_entry

    .type rest_entry, @function
rest_entry:
    entry_frame
    sti
    hlt
    iretq
    .cfi_endproc
    .size rest_entry, . - rest_entry
#endif

    .data
    .balign 8
table:
    .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x0000f20000000000, 0x0020fa0000000000
#ifdef TIMER
task_descriptor:
    .quad 0x00008900000000e8, 0
#endif
table_pointer:
    .word table_pointer - table - 1
    .quad table

#ifdef TIMER
interrupts_pointer:
    .word 0x81 * 16 - 1
    .quad interrupts
    .balign 8
task_state:
    .long 0
    .quad interrupt_stack_top
    .skip 90
    .word 104
    .skip 128                           # ports 0 to 0x3ff are allowed: some hypervisors lose IOPL in interrupts
    .byte 0xff

    .bss
    .balign 16
interrupts: .skip 0x81 * 16
    .skip 8192
interrupt_stack_top:
#endif

    .bss
    .balign 4096
level4: .skip 4096
level3: .skip 4096
level2: .skip 4096
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
