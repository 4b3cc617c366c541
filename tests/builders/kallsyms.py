"""kallsyms tables of every generation, built from a list of symbols as scripts/kallsyms.c lays them out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from guest.words import Words
from tests.builders.words import LITTLE_64

MASK = (1 << 64) - 1
PAIRS = ("sys_", "__", "_x", "do_", "long", "name")


@dataclass(frozen=True)
class Generation:
    """marker_width and alignment in bytes; values: absolute, base, percpu or place; is_new: values behind the tokens (6.4)."""

    values: str
    is_new: bool
    is_wide: bool = False
    marker_width: int = 4
    alignment: int = 8
    has_early_seqs: bool = False


GENERATIONS = {
    "4.19": Generation("percpu", is_new=False, marker_width=8),
    "5.10": Generation("percpu", is_new=False),
    "5.10-absolute": Generation("absolute", is_new=False),
    "6.1": Generation("percpu", is_new=False, is_wide=True),
    "6.2": Generation("percpu", is_new=False, is_wide=True, has_early_seqs=True),
    "6.12": Generation("percpu", is_new=True, is_wide=True),
    "6.15": Generation("base", is_new=True, is_wide=True),
    "7.2": Generation("place", is_new=True, is_wide=True, alignment=4),
}


def build_tokens(symbols: Sequence[tuple[int, str, str]]) -> list[bytes]:
    """A used character is a token itself, free codes stand for some frequent strings or are empty."""
    used = {ord(letter) for _address, kind, name in symbols for letter in kind + name} | set(b"0123456789")
    free = [code for code in range(256) if code not in used]
    tokens = [bytes([code]) if code in used else b"" for code in range(256)]
    for code, pair in zip(free, PAIRS, strict=False):
        tokens[code] = pair.encode()
    return tokens


def compress(text: str, tokens: list[bytes]) -> bytes:
    codes = {token.decode(): code for code, token in enumerate(tokens) if token}
    out = bytearray()
    while text:
        token = next((pair for pair in PAIRS if text.startswith(pair) and pair in codes), text[0])
        out.append(codes[token])
        text = text[len(token) :]
    return bytes(out)


def build_names(symbols: Sequence[tuple[int, str, str]], tokens: list[bytes], *, is_wide: bool) -> tuple[bytes, list[int]]:
    """(names, offset of every 256th)."""
    names = bytearray()
    marks = []
    for index, (_address, kind, name) in enumerate(symbols):
        if index % 256 == 0:
            marks.append(len(names))
        code = compress(kind + name, tokens)
        names += bytes([len(code) & 0x7F | 0x80, len(code) >> 7]) if is_wide and len(code) > 127 else bytes([len(code)])
        names += code
    return bytes(names), marks


def build_kallsyms(
    symbols: Sequence[tuple[int, str, str]], generation: Generation, address: int, words: Words = LITTLE_64
) -> tuple[bytes, dict[str, int]]:
    """(bytes to put at an address, run-time address of each part). Symbols are in the order of the table."""
    tokens = build_tokens(symbols)
    names, marks = build_names(symbols, tokens, is_wide=generation.is_wide)
    base = min(value for value, _kind, _name in symbols if value >> 31)
    alignment = min(generation.alignment, words.size)
    out = bytearray()
    parts: dict[str, int] = {}

    def put(name: str, data: bytes) -> None:
        out.extend(bytes(-len(out) % alignment))
        parts[name] = address + len(out)
        out.extend(data)

    def put_values() -> None:
        out.extend(bytes(-len(out) % alignment))
        start = address + len(out)
        values = [value for value, _kind, _name in symbols]
        if generation.values == "absolute":
            put("kallsyms_addresses", struct.pack(f"{words.order}{len(values)}{words.format}", *values))
        elif generation.values == "place":
            put(
                "kallsyms_offsets",
                b"".join(struct.pack(f"{words.order}i", value - start - 4 * i) for i, value in enumerate(values)),
            )
        elif generation.values == "base":
            put("kallsyms_offsets", b"".join(struct.pack(f"{words.order}I", value - base) for value in values))
        else:
            offsets = [value if value < base else base - 1 - value for value in values]
            put("kallsyms_offsets", struct.pack(f"{words.order}{len(values)}i", *offsets))
        if generation.values in ("base", "percpu"):
            put("kallsyms_relative_base", struct.pack(f"{words.order}{words.format}", base))

    if not generation.is_new:
        put_values()
    put("kallsyms_num_syms", struct.pack(f"{words.order}I", len(symbols)))
    put("kallsyms_names", names)
    put("kallsyms_markers", b"".join(mark.to_bytes(generation.marker_width, words.byteorder) for mark in marks))
    if generation.has_early_seqs:
        put("kallsyms_seqs_of_names", b"".join(index.to_bytes(3, "big") for index in range(len(symbols))))
    put("kallsyms_token_table", b"".join(token + b"\0" for token in tokens))
    offsets = [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token) + 1)
    put("kallsyms_token_index", struct.pack(f"{words.order}256H", *offsets))
    if generation.is_new:
        put_values()
    return bytes(out), parts
