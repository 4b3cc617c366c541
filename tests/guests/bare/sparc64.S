! Entered by sparc64_prom.S with the MMU off.
    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined 15                  ! %o7
    wrpr %g0, 0, %tl
    wrpr %g0, 0x14, %pstate            ! privileged, with floating point
    wrpr %g0, 0, %cwp
    wrpr %g0, 0, %canrestore
    wrpr %g0, 0, %otherwin
    wrpr %g0, 0, %wstate
    rdpr %ver, %g1
    and %g1, 31, %g1                   ! windows - 1
    wrpr %g1, 0, %cleanwin
    dec %g1
    wrpr %g1, 0, %cansave
    sethi %hi(traps), %g1
    wrpr %g1, 0, %tba
    sethi %hi(stack_top - 256 - 2047), %sp
    call main
    or %sp, %lo(stack_top - 256 - 2047), %sp
1:  ba 1b
    nop
    .cfi_endproc
    .size _start, . - _start

    ! The trap table's entries for windows (SPARC V9 manual, 7.5.2): 0x80 spills one, 0xc0 fills one.
    .macro window, operation, last
    .set at, 0
    .irp register, l0, l1, l2, l3, l4, l5, l6, l7, i0, i1, i2, i3, i4, i5, i6, i7
    .ifc \operation, stx
    stx %\register, [%sp + 2047 + at]
    .else
    ldx [%sp + 2047 + at], %\register
    .endif
    .set at, at + 8
    .endr
    \last
    retry
    .endm
    .text
    .balign 0x8000
traps:
    .skip 0x80 * 32
    window stx, saved
    .org traps + 0xc0 * 32
    window ldx, restored

    .bss
    .balign 16
    .skip 16384
stack_top:

    .section .note.GNU-stack, "", @progbits
