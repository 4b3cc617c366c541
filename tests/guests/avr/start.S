; The reset vector of an ATmega2560: a stack at the end of RAM and what the compiler expects of r1.
    .text
    .global _start
    .type _start, @function
_start:
    clr r1
    ldi r28, 0xff
    ldi r29, 0x21
    out 0x3d, r28
    out 0x3e, r29
    call main
1:  rjmp 1b
    .size _start, . - _start
