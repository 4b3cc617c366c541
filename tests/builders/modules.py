"""A kernel's memory with loaded modules and generated code in it, as lists of structs that its own BTF describes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

from guest.btf import parse_btf
from guest.memory import run_steps
from guest.structs import Structs
from recording.symbols import SymbolTable
from tests.builders.btf import Btf
from tests.builders.kernel_structs import Heap
from tests.builders.words import LITTLE_64

LIVE, COMING, UNFORMED = 0, 1, 3
CALL_ROW = struct.pack("<hhH", 16, 0, 0x205)
"""ORC version 3: CFA is the stack pointer plus 16."""


def module_structs(*, new_layout: bool) -> Structs:
    """The structs that a reader of modules wants, as from 6.4 on or as before."""
    btf = Btf()
    number, pointer, byte = btf.number(4), btf.pointer(), btf.number(1, "char")
    ring = btf.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 8)])
    btf.struct("mod_kallsyms", 32, [("symtab", pointer, 0), ("num_symtab", number, 8), ("strtab", pointer, 16)])
    orc = btf.struct("arch", 24, [("num_orcs", number, 0), ("orc_unwind_ip", pointer, 8), ("orc_unwind", pointer, 16)])
    members = [
        ("state", number, 0),
        ("list", ring, 8),
        ("name", btf.array(byte, 56), 24),
        ("kallsyms", pointer, 80),
        ("arch", orc, 88),
    ]
    members.append(("notes_attrs", pointer, 112))
    if new_layout:
        memory = btf.struct("module_memory", 24, [("base", pointer, 0), ("size", number, 12)])
        members.append(("mem", btf.array(memory, 7), 128))
        btf.enum("mod_mem_type", {"MOD_TEXT": 0, "MOD_INIT_TEXT": 4})
    else:
        memory = btf.struct("module_layout", 16, [("base", pointer, 0), ("size", number, 8), ("text_size", number, 12)])
        members += [("core_layout", memory, 128), ("init_layout", memory, 144)]
    btf.struct("module", 320, members)
    btf.enum("module_state", {"MODULE_STATE_LIVE": LIVE, "MODULE_STATE_COMING": COMING, "MODULE_STATE_UNFORMED": UNFORMED})
    attribute = btf.struct("attribute", 16, [("name", pointer, 0)])
    btf.struct("bin_attribute", 40, [("attr", attribute, 0), ("size", pointer, 16), ("private", pointer, 24)])
    btf.struct("module_notes_attrs", 16, [("dir", pointer, 0), ("attrs", btf.array(pointer, 0), 16)])
    tree = btf.struct("latch_tree_root", 24, [("seq", number, 0)])
    btf.struct("mod_tree_root", 40, [("root", tree, 0)])
    btf.struct("bpf_ksym", 64, [("start", pointer, 0), ("end", pointer, 8), ("name", btf.array(byte, 32), 16), ("lnode", ring, 48)])
    btf.struct(
        "ftrace_ops", 64, [("flags", pointer, 0), ("trampoline", pointer, 8), ("trampoline_size", pointer, 16), ("list", ring, 24)]
    )
    btf.struct("kprobe_insn_cache", 64, [("pages", ring, 32)])
    btf.struct("kprobe_insn_page", 32, [("list", ring, 0), ("insns", pointer, 16)])
    return run_steps(parse_btf(btf.to_bytes(), LITTLE_64))


class ModuleHeap(Heap):
    """A heap with the kernel's lists, empty at first."""

    def __init__(self, *, new_layout: bool = True) -> None:
        super().__init__()
        self.new_layout = new_layout
        self.structs = module_structs(new_layout=new_layout)
        self.lists = {
            name: self.take(64) for name in ("modules", "bpf_kallsyms", "ftrace_ops_trampoline_list", "kprobe_insn_slots")
        }
        self.trees = {name: self.take(64) for name in ("mod_tree", "bpf_tree")}
        self.symbols = SymbolTable.from_symbols([(address, "d", name) for name, address in {**self.lists, **self.trees}.items()])
        self._sequence = 0
        for name in self.lists:
            self.link(name, [], 0)

    def link(self, name: str, elements: Sequence[int], offset: int) -> None:
        """Make these the elements of a list, whose ``struct list_head`` is at an offset in them."""
        head = self.lists[name] + (32 if name == "kprobe_insn_slots" else 0)
        ring = [head, *(element + offset for element in elements), head]
        for before, after in pairwise(ring):
            self.write(before, struct.pack("<Q", after))
            self.write(after + 8, struct.pack("<Q", before))
        self._sequence += 2
        for address in self.trees.values():
            self.write(address, struct.pack("<I", self._sequence))

    def link_modules(self, *modules: int) -> None:
        self.link("modules", modules, 8)

    def module(
        self,
        name: str,
        code: bytes = bytes(64),
        symbols: Mapping[str, int] | None = None,
        *,
        state: int = LIVE,
        start: bytes = b"",
        orc: Sequence[int] = (),
        build_id: bytes = b"",
    ) -> int:
        """A module's address. symbols: offsets in its code (in that of its start from 0x1000 on). orc: offsets of CALL rows."""
        base, init = self.take(len(code)), self.take(len(start)) if start else 0
        self.write(base, code)
        if start:
            self.write(init, start)
        rows: list[tuple[str, int]] = [
            (each, base + at if at < 0x1000 else init + at - 0x1000) for each, at in (symbols or {}).items()
        ]
        strings, table = bytearray(b"\0"), bytearray(24)
        for each, address in rows:
            table += struct.pack("<IBBHQQ", len(strings), 2, 0, 1, address, 8)
            strings += each.encode() + b"\0"
        # One that it imports, and one of its data.
        table += struct.pack("<IBBHQQ", 1, 2, 0, 0, base, 0) + struct.pack("<IBBHQQ", 1, 1, 0, 3, base - 0x100, 0)
        tables = self.put("mod_kallsyms", symtab=self._put(table), num_symtab=len(table) // 24, strtab=self._put(strings))
        places = self.take(4 * len(orc) or 4)
        for index, at in enumerate(orc):
            self.write(places + 4 * index, struct.pack("<i", base + at - places - 4 * index))
        ranges = {"core_layout__base": base, "core_layout__text_size": len(code)}
        ranges |= {"init_layout__base": init, "init_layout__text_size": len(start)}
        if self.new_layout:
            ranges = {"mem[0]__base": base, "mem[0]__size": len(code), "mem[4]__base": init, "mem[4]__size": len(start)}
        return self.put(
            "module",
            0,
            **ranges,
            state=state,
            name=name.encode(),
            kallsyms=tables,
            arch__num_orcs=len(orc),
            arch__orc_unwind_ip=places,
            arch__orc_unwind=self._put(CALL_ROW * len(orc)),
            notes_attrs=self.notes(build_id) if build_id else 0,
        )

    def notes(self, build_id: bytes) -> int:
        """The address of what a module's notes_attrs points to."""
        note = struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id
        notes = self.take(128)
        attribute = {"attr__name": self.text(b".note.gnu.build-id"), "size": len(note), "private": self._put(note)}
        self.put("bin_attribute", notes + 16, **attribute)
        return notes

    def _put(self, data: bytes | bytearray) -> int:
        address = self.take(len(data) or 1)
        self.write(address, bytes(data))
        return address
