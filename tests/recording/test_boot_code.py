"""Code from before the kernel in a recording: names by its programs, milestones by what these are there for."""

from __future__ import annotations

from pathlib import Path

from recording.milestones import BOOT_CODE, find_milestones
from recording.model import Callchain, Context, Event, Frame, FrameKind, Halt, Image, Sample, Space, StackEnd
from recording.profile import Profile
from recording.reader import Recording
from recording.store import RecordingWriter

MS = 1_000_000
PROGRAMS = (
    ("firmware", "SeaBIOS", "its text, moved: the same code as at 0xfff00000"),
    ("option-rom", "VGA BIOS", "its header"),
    ("boot-loader", "GRUB at work", "its greeting"),
    ("decompressor", "Linux decompressor", "the setup header at 0x8a000"),
)


def test_a_boot_that_gets_no_further_than_the_decompressor(tmp_path: Path) -> None:
    path = tmp_path / "a.guestprof"
    with RecordingWriter(path, clock=lambda: 0.0) as writer:
        images = []
        for role, name, why in PROGRAMS:
            images.append(writer.add_image(Image(name, FrameKind.FIRMWARE, 0, None, (), None)))
            writer.add_event(Event(0, BOOT_CODE, f"{role}: {name} at 0x1000, by {why}"))
        for number, image in enumerate((None, 0, 1, 0, 2, 0, 3, 3)):
            halt = writer.add_halt(Halt(10 * MS * number, 10 * MS * number, MS, 0))
            frame = Frame(0x1230 + number, 0x1230 + number, Space.FIRMWARE, image=image)
            chain = Callchain((frame,), StackEnd.FIRMWARE)
            writer.add_sample(Sample(halt, 0, 0, 10 * MS, chain, context=Context.FIRMWARE))
        writer.commit()
    with Recording.open(path) as recording:
        profile = Profile(recording)
        names = {(function.name, function.module) for function in profile.functions}
        assert ("[firmware]", "[firmware]") in names
        assert ("SeaBIOS+0x1231", "SeaBIOS") in names
        assert {function.kind for function in profile.functions} == {FrameKind.FIRMWARE}
        found = [(each.name, each.time_ns // MS, each.begins_phase, each.title) for each in find_milestones(profile)]
    assert found == [
        ("firmware", 0, True, "firmware, boot loader or decompressor run"),
        ("option-rom", 20, False, "code of an expansion card runs: VGA BIOS"),
        ("boot-loader", 40, True, "the boot loader runs: GRUB at work"),
        ("decompressor", 60, True, "the kernel unpacks itself: Linux decompressor"),
    ]
