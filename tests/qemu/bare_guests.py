"""Guests without an operating system, built from ``tests/guests/bare``: known call paths, in known shares, on many machines."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from elftools.elf.elffile import ELFFile

from recording.errors import MissingDependencyError

_SOURCES = Path(__file__).parent.parent / "guests" / "bare"
_POLL_S = 0.02
# A call in the last place would otherwise replace its caller's frame by the callee's: rightly absent from a stack.
_FLAGS = (
    *("-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
    *("-fno-stack-protector", "-fno-optimize-sibling-calls", "-fasynchronous-unwind-tables", "-Wl,--build-id=sha1"),
    *("-Wl,-z,max-page-size=4096", "-Wl,--no-warn-rwx-segments"),
)
SHARES = {"leaf_five": 0.5, "leaf_three": 0.3, "leaf_two": 0.2}
"""Of the time that the guest works."""
DEPTH = 6
"""How often ``recurse`` is in a stack with ``leaf_three``."""
PATHS = {
    "leaf_five": ["main", "serve", "middle_five", "leaf_five"],
    "leaf_three": ["main", "serve", "middle_three", *["recurse"] * DEPTH, "leaf_three"],
    "leaf_two": ["main", "serve", "dispatch", "leaf_two"],
}
"""Callers of each, outermost first, from ``main`` on."""


_FILE_SERIAL = ("-serial", "file:{console}")


@dataclass(frozen=True, slots=True)
class BareMachine:
    """What to build for, and what to run it on.

    name: of the test. architecture: guestprof's name of it. source: of the startup code. compiler: Debian's package has its name.
    base: where the code is linked. qemu, serial: of the command line; ``{console}`` is a file. package: has the emulator.
    bias: how far QEMU moves the code. firmware: source of what enters the guest, which QEMU's loader then puts into RAM; "" for
    QEMU's own.
    """

    name: str
    architecture: str
    source: str
    compiler: str
    base: int
    flags: tuple[str, ...]
    qemu: tuple[str, ...]
    package: str
    serial: tuple[str, ...] = _FILE_SERIAL
    bias: int = 0
    firmware: str = ""


_X86_64 = ("-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none")
_PC = ("qemu-system-x86_64", "-m", "64")
X86_64 = BareMachine("x86_64", "x86_64", "x86_64.S", "gcc", 0x100000, _X86_64, _PC, "qemu-system-x86")
X86_64_RING3 = replace(X86_64, name="x86_64-ring3", flags=(*_X86_64, "-DRING"), firmware="bios.S")
"""Its work is done in ring 3, which also hypervisors run that interpret ring 0; SeaBIOS would take them seconds."""
_ARM_VIRT = ("-M", "virt", "-m", "64", "-cpu")
_ARM = BareMachine(
    "arm",
    "armhf",
    "arm.S",
    "arm-linux-gnueabihf-gcc",
    0x40100000,
    ("-marm", "-Wl,--defsym=__aeabi_unwind_cpp_pr0=0,--defsym=__aeabi_unwind_cpp_pr1=0"),
    ("qemu-system-arm", *_ARM_VIRT, "cortex-a15"),
    "qemu-system-arm",
)
CORTEX_M = replace(
    _ARM,
    name="cortex-m",
    source="cortex_m.S",
    base=0,
    flags=("-mthumb", "-mcpu=cortex-m3", "-mfloat-abi=soft", "-g", *_ARM.flags[1:]),
    qemu=("qemu-system-arm", "-M", "mps2-an385"),
)
"""A microcontroller, of which the stub tells no more than one of a board behind OpenOCD does: for ``--engine gdb``."""
_PSERIES = ("qemu-system-ppc64", "-M", "pseries,x-vof=on", "-m", "256")
_POWER = ("-mno-vsx", "-mno-altivec", "-msoft-float")
_PPC64LE = BareMachine(
    "ppc64le", "ppc64el", "ppc64.S", "powerpc64le-linux-gnu-gcc", 0, _POWER, _PSERIES, "qemu-system-ppc", bias=0x400000
)
_MIPSEL = BareMachine(
    "mipsel",
    "mipsel",
    "mips.S",
    "mipsel-linux-gnu-gcc",
    0x80100000,
    ("-mabi=32", "-mno-abicalls", "-G0", "-msoft-float"),
    ("qemu-system-mipsel", "-M", "malta", "-m", "64"),
    "qemu-system-mips",
)
OTHERS = (
    BareMachine(
        "arm64",
        "arm64",
        "aarch64.S",
        "aarch64-linux-gnu-gcc",
        0x40100000,
        ("-mgeneral-regs-only",),
        ("qemu-system-aarch64", *_ARM_VIRT, "cortex-a57"),
        "qemu-system-arm",
    ),
    _ARM,
    replace(_ARM, name="thumb", flags=("-mthumb", *_ARM.flags[1:])),
    BareMachine(
        "riscv64",
        "riscv64",
        "riscv64.S",
        "riscv64-linux-gnu-gcc",
        0x80000000,
        ("-mcmodel=medany",),
        ("qemu-system-riscv64", "-M", "virt", "-bios", "none", "-m", "64"),
        "qemu-system-misc",
    ),
    _PPC64LE,
    replace(_PPC64LE, name="ppc64", compiler="powerpc64-linux-gnu-gcc", flags=("-mabi=elfv2", *_POWER)),
    _MIPSEL,
    replace(
        _MIPSEL,
        name="mips",
        architecture="mips",
        compiler="mips-linux-gnu-gcc",
        qemu=("qemu-system-mips", "-M", "malta", "-m", "64"),
    ),
    BareMachine(
        "s390x",
        "s390x",
        "s390x.S",
        "s390x-linux-gnu-gcc",
        0x10000,
        ("-msoft-float",),
        ("qemu-system-s390x", "-M", "s390-ccw-virtio", "-m", "64"),
        "qemu-system-misc",
        serial=("-chardev", "file,id=console,path={console}", "-device", "sclpconsole,chardev=console"),
    ),
    BareMachine(
        "m68k",
        "m68k",
        "m68k.S",
        "m68k-linux-gnu-gcc",
        0x10000,
        # As bare-metal programs are often built: .eh_frame has the startup code alone, .debug_frame the rest.
        ("-m68040", "-msoft-float", "-g", "-fno-asynchronous-unwind-tables"),
        ("qemu-system-m68k", "-M", "virt", "-m", "64"),
        "qemu-system-misc",
    ),
    BareMachine(
        "i386",
        "i386",
        "i386.S",
        "gcc",
        0x100000,
        ("-m32", "-march=i686", *_X86_64[1:]),
        ("qemu-system-i386", "-m", "64"),
        "qemu-system-x86",
    ),
    BareMachine(
        "powerpc",
        "powerpc",
        "ppc.S",
        "powerpc64-linux-gnu-gcc",
        0x100000,
        ("-m32", "-mcpu=440", "-msoft-float"),
        ("qemu-system-ppc", "-M", "bamboo", "-m", "64"),
        "qemu-system-ppc",
    ),
    BareMachine(
        "sparc",
        "sparc",
        "sparc.S",
        "sparc64-linux-gnu-gcc",
        0x40000000,
        ("-m32", "-mcpu=v8", "-msoft-float", "-mflat"),
        ("qemu-system-sparc", "-M", "leon3_generic", "-m", "64"),
        "qemu-system-sparc",
    ),
    BareMachine(
        "sparc64",
        "sparc64",
        "sparc64.S",
        "sparc64-linux-gnu-gcc",
        0x100000,
        ("-mcmodel=medlow", "-mflat"),
        ("qemu-system-sparc64", "-M", "sun4u", "-m", "64"),
        "qemu-system-sparc",
        firmware="sparc64_prom.S",
    ),
)
"""Those other than x86-64, which also runs under KVM."""


def build(machine: BareMachine, path: Path, *, rounds: int = 0, flags: tuple[str, ...] = ()) -> Path:
    """Compile into a file. rounds: of work until it prints "done", 0: never. Raises MissingDependencyError without a compiler."""
    command = [machine.compiler, *_FLAGS, *machine.flags, *flags, f"-DROUNDS={rounds}", f"-DDEPTH={DEPTH}"]
    command += ["-T", str(_SOURCES / "guest.ld"), f"-Wl,--defsym=BASE={machine.base:#x}"]
    command += [str(_SOURCES / machine.source), str(_SOURCES / "work.c"), "-o", str(path)]
    if shutil.which(machine.compiler) is None or shutil.which(machine.qemu[0]) is None:
        compiler = machine.compiler.removesuffix("-gcc")
        packages = f"{'gcc' if compiler == 'gcc' else f'gcc-{compiler}'} {machine.package}".replace("x86_64", "x86-64")
        raise MissingDependencyError(f"no guest can be built or run for {machine.name}; Debian: apt-get install {packages}")
    subprocess.run(command, check=True)
    return path


def build_firmware(machine: BareMachine, kernel: Path) -> Path | None:
    """What enters a guest of this machine, beside its file; None where QEMU's own firmware does."""
    if not machine.firmware:
        return None
    with kernel.open("rb") as stream:
        entry = ELFFile(stream).header.e_entry
    made, path = kernel.with_suffix(".firmware.o"), kernel.with_suffix(".firmware")
    objcopy = f"{machine.compiler.removesuffix('gcc')}objcopy"
    assemble = [machine.compiler, "-c", f"-Wa,--defsym,ENTRY={entry:#x}", str(_SOURCES / machine.firmware), "-o", str(made)]
    subprocess.run(assemble, check=True)
    subprocess.run([objcopy, "-O", "binary", "-j", ".text", str(made), str(path)], check=True)
    return path


class BareGuest:
    """A running one, with a gdb stub on a unix socket and its console in a file. Ends when the ``with`` block ends."""

    def __init__(
        self,
        machine: BareMachine,
        kernel: Path,
        *extra: str,
        mark: str = "ready",
        timeout_s: float = 60.0,
    ) -> None:
        """Starts it, and waits until the console shows the mark."""
        self._directory = Path(tempfile.mkdtemp(prefix="gp-bare-"))
        self._console = self._directory / "console"
        firmware = build_firmware(machine, kernel)
        self.target = f"unix:{self._directory / 'gdb'}"
        self.process = subprocess.Popen(
            [
                *machine.qemu,
                *("-nodefaults", "-display", "none"),
                *(("-kernel", str(kernel)) if firmware is None else ("-bios", str(firmware), "-device", f"loader,file={kernel}")),
                *(option.format(console=self._console) for option in machine.serial),
                *("-chardev", f"socket,id=g0,path={self._directory / 'gdb'},server=on,wait=off", "-gdb", "chardev:g0", *extra),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.wait_for(mark, timeout_s)
        except BaseException:
            self.close()
            raise

    def console_text(self) -> str:
        """Everything that the guest has printed."""
        return self._console.read_text("latin-1") if self._console.exists() else ""

    def wait_for(self, mark: str, timeout_s: float = 60.0) -> None:
        """Wait until the console shows a mark."""
        deadline = time.monotonic() + timeout_s
        while mark not in self.console_text():
            assert self.process.poll() is None, f"QEMU ended before the guest printed {mark!r}: {self.console_text()!r}"
            assert time.monotonic() < deadline, f"the guest did not print {mark!r}: {self.console_text()!r}"
            time.sleep(_POLL_S)

    def close(self) -> None:
        """End QEMU, by its process id."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
