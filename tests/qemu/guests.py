"""A kernel and an initramfs become a running QEMU guest that a test may halt, profile and lose: always ended at teardown."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

QEMU = "qemu-system-x86_64"
BOOT_TIMEOUT_S = 180.0
_POLL_S = 0.05
_PANIC = "Kernel panic - not syncing"
_QMP_TIMEOUT_S = 20.0


class GuestFailedError(AssertionError):
    """The guest ended, or did not print in time what the test waits for; the message ends with its console."""


class GuestCrashedError(GuestFailedError):
    """The guest's kernel panicked."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What to emulate.

    name: Debian's of the architecture. package: that has the emulator. cpu: "" for the emulator's own choice.
    console: the kernel's name of the serial port. programs: the suite that its busybox is of, "" for this machine's.
    suites: those of Debian that have a kernel for it which boots here. vcpus: that the machine and the kernel can have.
    """

    name: str
    qemu: str
    package: str
    cpu: str
    options: tuple[str, ...] = ()
    console: str = "ttyS0"
    programs: str = ""
    suites: tuple[str, ...] = ("bookworm", "trixie")
    vcpus: int = 2


# Debian's 6.12 oopses at boot under some QEMUs' TCG with cmpxchg16b on offer.
PC = Machine("amd64", QEMU, "qemu-system-x86", "qemu64,-cx16")
ARM64 = Machine("arm64", "qemu-system-aarch64", "qemu-system-arm", "cortex-a57", ("-M", "virt"), "ttyAMA0")
# Debian builds no newer kernels for it.
I386 = Machine("i386", "qemu-system-i386", "qemu-system-x86", "qemu32", suites=("bookworm",))
RISCV64 = Machine(
    "riscv64", "qemu-system-riscv64", "qemu-system-misc", "rv64", ("-M", "virt"), programs="trixie", suites=("trixie",)
)
MIPS64EL = Machine("mips64el", "qemu-system-mips64el", "qemu-system-mips", "5KEc", ("-M", "malta"), suites=("bookworm",), vcpus=1)
# Its vCPUs are threads of one core.
MIPSEL = Machine("mipsel", "qemu-system-mipsel", "qemu-system-mips", "34Kf", ("-M", "malta"), suites=("bookworm",))

ARMHF = Machine("armhf", "qemu-system-arm", "qemu-system-arm", "cortex-a15", ("-M", "virt"), "ttyAMA0")
S390X = Machine("s390x", "qemu-system-s390x", "qemu-system-misc", "qemu", ("-M", "s390-ccw-virtio"), "ttysclp0")

PPC64EL = Machine("ppc64el", "qemu-system-ppc64", "qemu-system-ppc", "", ("-M", "pseries"), "hvc0")

MACHINES = (ARM64, RISCV64, S390X, PPC64EL, I386, MIPS64EL, MIPSEL, ARMHF)
"""Those of the architectures other than x86-64, which has tests and benchmarks of its own."""


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """How to start a guest. append: more of the kernel's command line. extra: more of QEMU's. cpu: "" for the machine's."""

    kernel: Path
    initramfs: Path
    vcpus: int = 1
    append: str = ""
    cpu: str = ""
    machine: Machine = PC
    memory_mib: int = 512
    accelerator: str = "tcg"
    stub: bool = True
    reboots: bool = False
    extra: tuple[str, ...] = ()

    @property
    def processor(self) -> str:
        """QEMU's name of it."""
        return self.cpu or self.machine.cpu


class Guest:
    """A QEMU process with a gdb stub and QMP on unix sockets, and its console in a file. Ends when the ``with`` block ends."""

    def __init__(self, options: GuestOptions) -> None:
        self.options = options
        # Not under pytest's tmp_path: a unix socket's path may have 107 bytes (unix(7)).
        self.directory = Path(tempfile.mkdtemp(prefix="gp-"))
        self.gdb = self.directory / "gdb"
        self.qmp = self.directory / "qmp"
        self.console = self.directory / "console"
        # A second QMP socket for the test itself: QEMU serves one client on each.
        self.monitor = self.directory / "monitor"
        self._log = self.directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def command(self) -> list[str]:
        """QEMU's command line."""
        options = self.options
        stub = ["-chardev", f"socket,id=g0,path={self.gdb},server=on,wait=off", "-gdb", "chardev:g0"] if options.stub else []
        return [
            *(options.machine.qemu, *options.machine.options, "-accel", options.accelerator),
            *(("-cpu", options.processor) if options.processor else ()),
            *("-smp", str(options.vcpus), "-m", str(options.memory_mib)),
            *("-nodefaults", "-display", "none", "-serial", f"file:{self.console}", *([] if options.reboots else ["-no-reboot"])),
            *(
                "-kernel",
                str(options.kernel),
                "-initrd",
                str(options.initramfs),
                "-append",
                f"console={options.machine.console} {options.append}".strip(),
            ),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off", "-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *(*stub, *options.extra),
        ]

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.process.pid

    @property
    def target(self) -> str:
        """The stub's address as ``--connect`` takes it."""
        return f"unix:{self.gdb}"

    def console_text(self) -> str:
        """Everything that the guest has printed."""
        return self.console.read_text("utf-8", "replace") if self.console.exists() else ""

    def wait_for(self, mark: str, timeout_s: float = BOOT_TIMEOUT_S, *, count: int = 1) -> None:
        """Wait until the console shows ``mark`` (``count`` times). Raises GuestFailedError."""
        deadline = time.monotonic() + timeout_s
        while self.console_text().count(mark) < count:
            if self.process.poll() is not None:
                self._fail(f"QEMU ended with status {self.process.returncode} before it printed {mark!r}")
            if _PANIC in self.console_text():
                raise GuestCrashedError(f"the guest's kernel panicked before it printed {mark!r}\n{self.console_text()[-3000:]}")
            if time.monotonic() > deadline:
                self._fail(f"the guest did not print {mark!r} within {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def wait_for_end(self, timeout_s: float = BOOT_TIMEOUT_S) -> int:
        """Wait until QEMU has ended; its exit status. Raises GuestFailedError."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._fail(f"QEMU was still there after {timeout_s:.0f} s")
            raise

    def status(self) -> str:
        """What QMP's ``query-status`` says: "running", "paused", ..."""
        answer = self.execute("query-status")
        assert isinstance(answer, dict)
        return str(answer["status"])

    def execute(self, command: str, **arguments: object) -> object:
        """What one QMP command returns. Raises GuestFailedError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_QMP_TIMEOUT_S)
            connection.connect(str(self.monitor))
            with connection.makefile("rwb") as stream:
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    answer: dict[str, object] = {}
                    while "return" not in answer:
                        answer = json.loads(stream.readline() or b'{"error": "QEMU closed the connection"}')
                        if "error" in answer:
                            self._fail(f"QMP {command}: {answer['error']}")
                return answer["return"]

    def close(self) -> None:
        """End QEMU, by its process id, and remove its files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _fail(self, message: str) -> None:
        log = self._log.read_text("utf-8", "replace")
        raise GuestFailedError(f"{message}\n{log}\n{self.console_text()[-3000:]}")
