# -M pseries,x-vof=on -kernel FILE.elf: entered in big endian, at the address of the first instruction, which QEMU may have moved.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined lr
#ifdef __LITTLE_ENDIAN__
    # The same in big endian: mfmsr r11; xori r11,r11,1; bcl 20,31,.+4; mflr r10; addi r10,r10,20; mtsrr0 r10; mtsrr1 r11; rfid.
    .long 0xa600607d, 0x01006b69, 0x05009f42, 0xa602487d, 0x14004a39, 0xa6035a7d, 0xa6037b7d, 0x2400004c
#endif
    bcl 20, 31, 1f
1:  mflr 10
    addis 2, 10, (.TOC. - 1b)@ha
    addi 2, 2, (.TOC. - 1b)@l
    addis 1, 10, (stack_top - 256 - 1b)@ha
    addi 1, 1, (stack_top - 256 - 1b)@l
    li 0, 0
    std 0, 0(1)
    std 0, 16(1)
    bl main
    nop
2:  b 2b
    .cfi_endproc
    .size _start, . - _start

    .bss
    .balign 16
    .skip 16384
stack_top:
