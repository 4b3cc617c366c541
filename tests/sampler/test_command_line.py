"""QEMU command lines of users: what guestprof leaves out, and what it must not take for an option."""

from __future__ import annotations

import pytest

from sampler.command_line import own_command, serial_file, with_accelerator


@pytest.mark.parametrize(
    ("words", "kept", "notes"),
    [
        ("qemu", "qemu", []),
        ("qemu -m 1G -nographic disk.img", "qemu -m 1G -nographic disk.img", []),
        ("qemu -S -m 1G", "qemu -m 1G", ["-S is left out"]),
        ("qemu -s -S", "qemu", ["-s is left out", "-S is left out"]),
        ("qemu --gdb tcp::1234 -m 1G", "qemu -m 1G", ["--gdb tcp::1234 is left out"]),
        ("qemu -daemonize -display none", "qemu -display none", ["-daemonize is left out"]),
        # The value of an option, whatever it looks like; a flag has none.
        ("qemu -append -s -snapshot -s", "qemu -append -s -snapshot", ["-s is left out"]),
        ("qemu -name -gdb -enable-kvm -gdb none", "qemu -name -gdb -enable-kvm", ["-gdb none is left out"]),
        ("qemu -s -s", "qemu", ["-s is left out"]),
        # QEMU says itself what is wrong with these.
        ("qemu -gdb", "qemu", ["-gdb is left out"]),
        ("qemu -m", "qemu -m", []),
        ("qemu - -", "qemu - -", []),
    ],
)
def test_what_is_left_out(words: str, kept: str, notes: list[str]) -> None:
    command = own_command(words.split())
    assert " ".join(command.arguments) == kept
    assert [note.split(":")[0] for note in command.notes if "tcp" not in note] == [note for note in notes if "tcp" not in note]
    assert len(command.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(command.notes, notes, strict=True))


def test_nothing_at_all() -> None:
    assert own_command(()).arguments == ()


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("qemu -serial file:/a:b", "/a:b"),
        ("qemu -nodefaults --serial file:x -serial stdio", "x"),
        ("qemu -serial stdio -serial file:x", None),
        ("qemu -append -serial file:x", None),
        ("qemu -serial file:", None),
        ("qemu -serial", None),
        ("qemu", None),
    ],
)
def test_file_of_the_console(words: str, path: str | None) -> None:
    assert serial_file(words.split()) == path


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("qemu -m 1G", "qemu -m 1G"),
        ("qemu -enable-kvm -m 1G -accel tcg,thread=single --accel kvm", "qemu -m 1G"),
        ("qemu -M q35,accel=kvm,usb=off -m 1G", "qemu -M q35,usb=off -m 1G"),
        ("qemu -machine accel=kvm:tcg -m 1G", "qemu -m 1G"),
        ("qemu -append -enable-kvm -name accel=x", "qemu -append -enable-kvm -name accel=x"),
        ("qemu -machine", "qemu -machine"),
    ],
)
def test_the_accelerator_is_replaced(words: str, kept: str) -> None:
    assert " ".join(with_accelerator(words.split(), "tcg")) == f"{kept} -accel tcg"
