# The smallest firmware of a PC: from the reset vector to 32-bit protected mode, and to the guest that QEMU's loader has put into RAM.
# SeaBIOS takes many seconds where a hypervisor interprets it.
    .code16
    .text
    .globl _bios
_bios:
table:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
table_pointer:
    .word table_pointer - table - 1
    .long 0xffff0000
start:
    cli
    lgdtl %cs:(table_pointer - table)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $0xffff0000 + protected - table
    .code32
protected:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    # The local APIC is on and lets the 8259's interrupts through (Intel SDM volume 3, 11.4.7.2 and 11.5.1).
    movl $0x1ff, 0xfee000f0
    movl $0x700, 0xfee00350
    movl $ENTRY, %eax
    jmp *%eax
    .org 0xfff0
    .code16
    jmp start
    .org 0x10000
