# A boot sector that is a 64-bit kernel of the smallest kind: it runs one loop at 0xffffffff80007c00 and onwards, where Linux
# keeps its own image, but nothing of it is Linux. tests/qemu/test_bad_targets.py holds the bytes that tools/ need not make:
# keeps its own image, but nothing of it is Linux. tests/qemu/test_bad_targets.py holds its bytes, made by:
.code16
.global _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    # Page tables at 0x1000..0x4fff: the first 2 MiB at 0 and at 0xffffffff80000000.
    mov $0x1000, %di
    xor %eax, %eax
    mov $0x1000, %cx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x2003, 0x1ff8
    movl $0x3003, 0x2000
    movl $0x3003, 0x2ff0
    movl $0x0083, 0x3000
    # CR4.PAE, CR3, EFER.LME, CR0.PG and PE (Intel SDM volume 3, 9.8.5).
    mov $0x20, %eax
    mov %eax, %cr4
    mov $0x1000, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    lgdt pointer
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    ljmp $8, $long_mode
.code64
long_mode:
    movabs $0xffffffff80000000, %rax
    lea (%rax), %rsp
    add $0x7c00, %rsp
    add $loop, %rax
    jmp *%rax
loop:
    inc %rbx
    call work
    jmp loop
work:
    dec %rcx
    ret
.balign 8
gdt:
    .quad 0, 0x00209a0000000000
pointer:
    .word 15
    .long gdt
.org 510
    .word 0xaa55
