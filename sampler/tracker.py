"""Which kernel the guest runs right now, found and kept up to date in small steps between two samples.

Nothing is searched for until a vCPU runs kernel code (or user code, which a kernel must have started): before that it is firmware
or a decompressor. A kernel that was found is believed until the registers contradict it (the boot CPU with paging off, code where
the kernel has none); then its place in memory is looked at again, and after a reboot the search starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guest.cache import KernelCache
from guest.finder import find_kernel
from guest.kernel import Kernel, is_still_there, load_kernel, refresh_kernel
from guest.memory import PhysicalMemory, Steps
from recording.errors import BadImageError, GuestMemoryError
from unwind.arch import Architecture, Registers
from unwind.frame_pointer import FramePointerRows
from unwind.kernel import KernelUnwinder

_FIRST_RETRY_NS = 100_000_000
_LAST_RETRY_NS = 5_000_000_000
_REFRESH_NS = 500_000_000
_DOUBT_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class TrackerEvents:
    """What to call when something becomes known: the kernel found (and the unwinder made for it), read anew, gone (why)."""

    found: Callable[[Kernel], None]
    refreshed: Callable[[Kernel], None]
    gone: Callable[[str], None]


class KernelTracker:
    """Feeds on the registers of each halt (``see``) and on spare time (``step``)."""

    def __init__(self, memory: PhysicalMemory, architecture: Architecture, cache: KernelCache, events: TrackerEvents) -> None:
        self.kernel: Kernel | None = None
        self.unwinder: KernelUnwinder | None = None
        self.boot = 0
        self.problem: str | None = None
        self._memory = memory
        self._architecture = architecture
        self._cache = cache
        self._events = events
        self._work: Steps[None] | None = None
        self._registers: tuple[Registers, ...] = ()
        self._next_try_ns = 0
        self._retry_ns = _FIRST_RETRY_NS
        self._next_refresh_ns = 0
        self._next_doubt_ns = 0
        self._refresh_wanted = False

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return self._work is not None

    def see(self, vcpus: Sequence[int], registers: Sequence[Registers], now_ns: int) -> None:
        """Take notice of a halt's registers: start a search, doubt a kernel that was found, or read it anew."""
        arch = self._architecture
        self._registers = tuple(registers)
        if self.kernel is None:
            if self._work is None and now_ns >= self._next_try_ns and any(map(self._runs_under_a_kernel, registers)):
                self._work = self._search()
                self._next_try_ns = now_ns + self._retry_ns
                self._retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
            return
        boot_cpu = registers[vcpus.index(0)] if 0 in vcpus else registers[0]
        if not arch.paging.enabled(boot_cpu):
            self.lose("the guest was reset: its boot CPU has paging off")
        elif now_ns >= self._next_doubt_ns and any(map(self._is_strange, registers)):
            self._next_doubt_ns = now_ns + _DOUBT_NS
            if not any(is_still_there(self.kernel, each) for each in registers if arch.paging.enabled(each)):
                self.lose("another kernel runs now: the one that was found is no longer mapped")
        elif self._work is None and now_ns >= self._next_refresh_ns and (self._refresh_wanted or not self.kernel.is_settled):
            self._next_refresh_ns = now_ns + _REFRESH_NS
            self._work = self._refresh(self.kernel, has_new_text=self._refresh_wanted)
            self._refresh_wanted = False

    def want_refresh(self) -> None:
        """A stack did not fit the kernel's code as it was read: it may have been patched since."""
        self._refresh_wanted = True

    def lose(self, why: str) -> None:
        """The kernel is gone (a reset, a kexec): forget it and search for the next."""
        if self.kernel is None:
            # A search that a reset has overtaken would find what is no longer there.
            self._work = None
            return
        self._events.gone(why)
        self.kernel = self.unwinder = self._work = None
        self.boot += 1
        self._next_try_ns = 0
        self._retry_ns = _FIRST_RETRY_NS

    def step(self) -> None:
        """Do a few milliseconds of the work at hand. Raises UnsupportedTargetError for a kernel of another architecture."""
        if self._work is None:
            return
        work = self._work
        try:
            next(work)
        except StopIteration:
            if self._work is work:
                self._work = None
        except (BadImageError, GuestMemoryError) as error:
            # Memory that changes under our eyes (early boot, a reset) is no kernel yet: the next try may find one.
            self.problem = str(error)
            self._work = None

    def _runs_under_a_kernel(self, registers: Registers) -> bool:
        arch = self._architecture
        if arch.is_32bit_kernel(registers):
            return True
        return arch.paging.enabled(registers) and (arch.is_user(registers) or arch.is_kernel_address(registers[arch.pc]))

    def _is_strange(self, registers: Registers) -> bool:
        """Whether a vCPU runs code in the kernel's half where this kernel has none (or has it in a module, which may be)."""
        arch = self._architecture
        pc = registers[arch.pc]
        if self.kernel is None or arch.is_user(registers) or not arch.is_kernel_address(pc):
            return not arch.is_user(registers)
        low, high = arch.kernel_code.module_area
        in_boot_code = self.kernel.init_text[0] <= pc < self.kernel.init_text[1]
        return not (self.kernel.text.contains(pc) or in_boot_code or low <= pc < high)

    def _search(self) -> Steps[None]:
        location = yield from find_kernel(self._memory, self._architecture, self._registers)
        if location is None:
            return
        kernel = yield from load_kernel(self._architecture, location, self._cache)
        self.problem = kernel.orc_problem
        self._adopt(kernel)
        self._events.found(kernel)

    def _refresh(self, kernel: Kernel, *, has_new_text: bool) -> Steps[None]:
        fresh = yield from refresh_kernel(kernel, self._registers, has_new_text=has_new_text)
        self._adopt(fresh)
        self._events.refreshed(fresh)

    def _adopt(self, kernel: Kernel) -> None:
        self.kernel = kernel
        rows = FramePointerRows(kernel.symbols, kernel.text) if kernel.orc is None else kernel.orc
        self.unwinder = KernelUnwinder(
            self._architecture, kernel.symbols, kernel.text, rows, kernel.init_text, is_settled=kernel.is_settled
        )
