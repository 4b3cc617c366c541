"""Files of --elf: where they are in memory, and one sentence for each that cannot be what the guest runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.elf.images import GuestImages, ImageRequest, load_image, load_images
from recording.errors import BadImageError
from tests.builders.tiny_elf import CODE, elf
from unwind.arch.arm64 import ARM64
from unwind.arch.mipsel import MIPSEL
from unwind.arch.x86_64 import X86_64


def written(directory: Path, data: bytes, name: str = "guest.elf") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def test_bias_moves_code_and_names_the_address_space(tmp_path: Path) -> None:
    path = written(tmp_path, elf())
    images = load_images([ImageRequest(path, 0x20_0000)], X86_64)
    assert images is not None
    code = images.code_of({"rip": 0x20_1001, "cr3": 0})
    assert code is not None
    region = code.find_region(0x20_10FF)
    assert region is not None
    assert (region.start, region.end, region.bias, region.image) == (0x20_1000, 0x20_1100, 0x20_0000, 0)
    assert code.read(0x20_1000, 5) == CODE
    assert images.code_of({"rip": 0x1001, "cr3": 0}) is None
    assert images.segment_end(0x20_1080) == 0x20_1100


def test_a_negative_bias_wraps(tmp_path: Path) -> None:
    path = written(tmp_path, elf(0xFFFF_FFFF_8000_1000))
    images = load_images([ImageRequest(path, -0xFFFF_FFFF_8000_0000)], X86_64)
    assert images is not None
    code = images.code_of({"rip": 0x1004, "cr3": 0})
    assert code is not None
    assert code.read(0x1004, 1) == b"\xc3"


def test_programs_of_two_page_tables_at_one_address(tmp_path: Path) -> None:
    paths = [written(tmp_path, elf(size=0x100 * number), f"{number}.elf") for number in (1, 2)]
    images = load_images([ImageRequest(path, 0, root) for path, root in zip(paths, (0x2000, 0x3000), strict=True)], X86_64)
    assert images is not None
    found = [images.code_of({"rip": 0x1000, "cr3": table}) for table in (0x2000, 0x3018, 0x4000)]
    assert [None if code is None else code.find_region(0x1000).image for code in found] == [0, 1, None]  # type: ignore[union-attr]


def test_a_program_of_one_page_table_goes_before_what_all_have(tmp_path: Path) -> None:
    path = written(tmp_path, elf())
    images = load_images([ImageRequest(path), ImageRequest(path, 0, 0x2000)], X86_64)
    assert images is not None
    for table, image in ((0x2000, 1), (0x3000, 0)):
        code = images.code_of({"rip": 0x1000, "cr3": table})
        assert code is not None
        region = code.find_region(0x1000)
        assert region is not None
        assert region.image == image


def test_without_files_there_are_no_images() -> None:
    assert load_images([], X86_64) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"#!/bin/sh\n" + bytes(64), "is no ELF file"),
        (elf()[:70], "it is cut short"),
        (elf(machine=183), r"another processor \(ELF machine 183, 64 bits, little endian\) than the guest's x86_64"),
        (elf(kind=1), r"no linked program \(ELF type 1\)"),
        (elf(flags=4), "has no code"),
    ],
)
def test_bad_files_are_told_in_a_sentence(data: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(BadImageError, match=message) as caught:
        load_image(ImageRequest(path), X86_64)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="No such file"):
        load_image(ImageRequest(tmp_path / "nothing"), X86_64)


def test_overlaps_are_refused(tmp_path: Path) -> None:
    first, second = written(tmp_path, elf(0x1000), "a.elf"), written(tmp_path, elf(0x1080), "b.elf")
    with pytest.raises(BadImageError, match=r"a\.elf and .*b\.elf both have code at 0x1080"):
        load_images([ImageRequest(second), ImageRequest(first)], X86_64)
    assert load_images([ImageRequest(first), ImageRequest(second, 0x1000)], X86_64) is not None


def test_roots_need_a_register_that_tells_them(tmp_path: Path) -> None:
    image = load_image(ImageRequest(written(tmp_path, elf(machine=183)), 0, 0x1000), ARM64)
    assert GuestImages(ARM64, [image]).code_of({"pc": 0x1000, "TTBR0_EL1": 0x1000, "TTBR1_EL1": 0}) is not None
    with pytest.raises(BadImageError, match="no register of mipsel tells"):
        GuestImages(MIPSEL, [image])
