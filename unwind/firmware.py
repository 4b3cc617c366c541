"""A vCPU that runs firmware beneath the kernel becomes the kernel code that it was called from.

The kernel's registers lie on the firmware's own stack. Where exactly differs by version; but one register still holds what it held
in the kernel, so that the place where it was saved can be told, and what lies around it must be such registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unwind.arch import Architecture


def find_caller(
    architecture: Architecture, registers: Mapping[str, int], read: Callable[[int, int], bytes | None]
) -> Mapping[str, int] | None:
    """The kernel's registers at its call of firmware; None where the vCPU runs none, or was not called by the kernel.

    read: bytes of the firmware's stack, at addresses as firmware uses them.
    """
    firmware = architecture.firmware
    if firmware is None or not firmware.is_running(registers):
        return None
    caller = firmware.entered_from(registers)
    if caller is not None:
        return caller
    stack, kept = read(registers[architecture.sp], firmware.depth), registers.get(firmware.kept)
    if stack is None or kept is None:
        return None
    word, byteorder = architecture.pointer_size, architecture.byteorder
    pattern = kept.to_bytes(word, byteorder)
    at = len(stack)
    # The call of the kernel's is the outermost: what lies further down may be left over from an earlier one. Right at the stack
    # pointer the registers are just being saved or restored.
    while (at := stack.rfind(pattern, 0, at)) >= 0:
        start = at - firmware.frame[firmware.kept]
        if start <= 0 or start % word or start + firmware.size > len(stack):
            continue
        saved = {
            name: int.from_bytes(stack[start + offset : start + offset + word], byteorder)
            for name, offset in firmware.frame.items()
        }
        caller = firmware.caller(saved)
        if caller is not None:
            return caller
    return None
