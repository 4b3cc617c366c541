! The smallest firmware of a sun4u machine: from the reset's trap to the guest that QEMU's loader has put into RAM.
    .text
    .skip 0x20
    sethi %hi(ENTRY), %g1
    jmp %g1 + %lo(ENTRY)
    nop
