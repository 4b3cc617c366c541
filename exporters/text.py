"""Names and figures become text that is safe to print: what guests call things is not to be trusted."""

from __future__ import annotations

from typing import Any

from recording.quality import Quality


def printable(name: str) -> str:
    r"""A name with everything that is no visible character or blank written as ``\n``, ``\x1b``, ``\u202e``.

    That takes line breaks, terminal escapes, direction overrides, what XML forbids, and lone surrogates (bytes that were no UTF-8).
    """
    if name.isprintable():
        return name
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name])


def encodable(name: str) -> str:
    """A name which UTF-8 can hold: lone surrogates are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(name: str, width: int) -> str:
    """A name of at most ``width`` characters; a longer one ends in an ellipsis."""
    return name if len(name) <= width else name[: width - 1] + "…"


def share(part: float, whole: float) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 as ``12.3 %``; one that is not known as ``unknown``. 100 % is said of all only, 0 % of none only."""
    if value is None:
        return "unknown"
    least = 10.0**-digits
    figure = 100 * value
    if 0 < figure < least:
        return f"< {least:.{digits}f} %"
    if 100 - least < figure < 100:
        figure = 100 - least
    return f"{figure:.{digits}f} %"


def duration(duration_ns: float | None) -> str:
    """``1.23 s``, ``4.56 ms`` or ``7.89 µs``; one that is not known as ``unknown``."""
    if duration_ns is None:
        return "unknown"
    if duration_ns >= 1e9:
        return f"{duration_ns / 1e9:,.2f} s"
    if duration_ns >= 1e6:
        return f"{duration_ns / 1e6:.2f} ms"
    return f"{duration_ns / 1e3:.2f} µs"


def hertz(value: float | None) -> str:
    """``99.8 Hz``; a rate that is not known as ``unknown``."""
    return "unknown" if value is None else f"{value:,.1f} Hz"


def counted(number: int, word: str) -> str:
    """``1 sample``, ``2,000 samples``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def machine(meta: dict[str, Any]) -> str:
    """What was profiled, in one line: ``Linux 6.1.0-18-amd64 on x86_64, TCG, 2 vCPUs``."""
    release, architecture, accelerator, vcpus = (meta.get(k) for k in ("kernel_release", "architecture", "accelerator", "vcpus"))
    parts = [f"Linux {release}" if release else "QEMU guest"]
    if architecture:
        parts[0] += f" on {architecture}"
    if accelerator:
        parts.append(str(accelerator).upper())
    if vcpus:
        parts.append(counted(vcpus, "vCPU") if isinstance(vcpus, int) else f"{vcpus} vCPUs")
    return printable(", ".join(parts))


def rate_line(quality: Quality) -> str:
    """Requested and achieved rate and late deadlines."""
    late = "unknown" if quality.late is None else f"{quality.late:,}"
    requested, achieved = hertz(quality.requested_hz), hertz(quality.achieved_hz)
    return f"{requested} requested, {achieved} achieved, {late} of {quality.halts:,} deadlines late"


def halted_line(quality: Quality) -> str:
    """How long the guest stood halted."""
    p50, p99 = duration(quality.halted_p50_ns), duration(quality.halted_p99_ns)
    return f"{percent(quality.halted_share)} of the time; a halt takes {p50} (p50), {p99} (p99)"


def user_line(quality: Quality) -> str:
    """The share of complete user stacks; nothing where there are none."""
    return "" if quality.user_complete_share is None else f"{percent(quality.user_complete_share, 2)} of the user stacks are whole"


def stacks_line(quality: Quality) -> str:
    """The share of complete stacks."""
    if quality.complete_share is None:
        return "no samples in the kernel"
    complete, entry = percent(quality.complete_share, 2), percent(quality.entry_share, 2)
    return f"{complete} of the kernel stacks are complete ({entry} are in entry code, where there is no stack)"
