"""A user's QEMU command line → the same guest under a stub of ours: options that would get in the way are left out, and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_ALONE = frozenset(
    """
    S s daemonize enable-fips enable-kvm full-screen h help mem-prealloc no-acpi no-fd-bootchk no-hpet no-quit no-reboot no-shutdown
    no-user-config nodefaults nographic old-param only-migratable portrait preconfig semihosting singlestep snapshot usb version
    win2k-hack xen-attach xen-domid-restrict curses
    """.split()
)
"""Options without a value (qemu-options.hx, QEMU 7.2 to 10.0); all others take the next word, whatever it looks like."""
_STUB = "a guest has one gdb stub, and guestprof uses it (--keep-running tells where it is afterwards)"
_LEFT_OUT = {
    "S": "the guest starts when the recording does",
    "s": _STUB,
    "gdb": _STUB,
    "daemonize": "QEMU belongs to guestprof as long as that records, and runs on by itself with --keep-running",
}
"""Options by name, and why they are left out. QEMU takes the last of several ``-gdb``, without a word about the others."""


@dataclass(frozen=True, slots=True)
class OwnCommand:
    """arguments: QEMU's binary and options. notes: a sentence for each option that was left out."""

    arguments: tuple[str, ...]
    notes: tuple[str, ...]


def own_command(arguments: Sequence[str]) -> OwnCommand:
    """A command line without what guestprof does itself. Never fails: what QEMU does not know either, it says itself."""
    kept: list[str] = [*arguments[:1]]
    notes: dict[str, None] = {}
    for words in _options(arguments[1:]):
        why = _LEFT_OUT.get(_name(words[0]))
        if why is not None:
            notes[f"{' '.join(words)} is left out: {why}"] = None
        else:
            kept += words
    return OwnCommand(tuple(kept), tuple(notes))


def with_accelerator(arguments: Sequence[str], accelerator: str) -> tuple[str, ...]:
    """A command line with this accelerator (``kvm``, ``tcg``, ``tcg,thread=single``) and no other."""
    kept: list[str] = [*arguments[:1]]
    for words in _options(arguments[1:]):
        name = _name(words[0])
        if name in {"machine", "M"} and len(words) == 2:
            settings = [setting for setting in words[1].split(",") if not setting.startswith("accel=")]
            kept += [words[0], ",".join(settings)] if settings else []
        elif name not in {"accel", "enable-kvm"}:
            kept += words
    return (*kept, "-accel", accelerator)


def serial_file(arguments: Sequence[str]) -> str | None:
    """Where the first serial console goes, if that is a file."""
    values = (words[1] for words in _options(arguments[1:]) if _name(words[0]) == "serial" and len(words) == 2)
    kind, _, path = next(values, "").partition(":")
    return path if kind == "file" and path else None


def _name(word: str) -> str:
    """An option's, which may begin with one dash or two; "" for what is none, such as a disk image."""
    return word.removeprefix("-").removeprefix("-") if word.startswith("-") else ""


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Options with their values; a disk image stands alone."""
    words = iter(arguments)
    for word in words:
        name = _name(word)
        if not name or name in _ALONE:
            yield (word,)
            continue
        value = next(words, None)
        yield (word,) if value is None else (word, value)
