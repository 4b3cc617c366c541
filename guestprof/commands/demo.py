"""``guestprof demo``: a stock kernel's boot and workload as a flame graph, with nothing prepared."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from exporters.registry import EXPORT_FORMATS, ExportOptions
from exporters.report import SortBy
from exporters.report_text import export_report_text
from guestprof.boot_run import BootOptions, record_boot
from guestprof.debian import stock_kernel
from guestprof.initramfs import build_initramfs, find_busybox
from guestprof.output import write_output
from guestprof.recording_run import RunOptions, require_kernel
from guestprof.signals import raise_on_sigterm
from guestprof.version import version
from recording.profile import Profile
from recording.reader import Recording
from sampler.recorder import RecorderOptions

_FREQUENCY_HZ = 200
_ROWS = 25


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("guestprof-demo"),
    show_default=True,
    metavar="DIR",
    help="Where to write the recording and its pictures; files of an earlier demo are replaced.",
)
@click.option("-d", "--duration", type=click.FloatRange(1), default=20.0, show_default=True, metavar="SECONDS")
@click.option(
    "--kernel", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Boot this kernel instead of a fetched one."
)
@click.option("--smp", type=click.IntRange(1, 8), default=1, show_default=True, help="vCPUs of the guest.")
def demo(*, output: Path, duration: float, kernel: Path | None, smp: int) -> None:
    """Boot a stock Debian kernel under TCG, profile it from its first instruction on, and write a flame graph.

    The kernel is fetched as a package, checked against the archive's key and never installed.
    """
    raise_on_sigterm()
    image = kernel if kernel is not None else stock_kernel(tell=_tell)
    _tell(f"Booting {image}")
    output.mkdir(parents=True, exist_ok=True)
    recording = output / "demo.guestprof"
    with tempfile.TemporaryDirectory(prefix="guestprof-demo-") as scratch:
        initramfs = Path(scratch) / "initramfs"
        initramfs.write_bytes(build_initramfs(find_busybox(tell=_tell)))
        command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "512", "-smp", str(smp)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(image), "-initrd", str(initramfs), "-append", "console=ttyS0"),
        ]
        run = RunOptions(RecorderOptions(_FREQUENCY_HZ, duration), recording, force=True)
        outcome = record_boot(command, run, BootOptions())
    require_kernel(outcome, run)
    with Recording.open(recording) as opened:
        profile = Profile(opened)
        text = export_report_text(profile, sort=SortBy.TOTAL, limit=_ROWS)
        for format_ in EXPORT_FORMATS.values():
            title = f"Boot and workload of Linux {opened.meta.get('kernel_release', '')} under QEMU's TCG"
            write_output(output / f"demo{format_.suffix}", format_.pieces(profile, ExportOptions(version(), title)), force=True)
    sys.stdout.buffer.write(text)
    click.echo(
        f"\nOpen {output / 'demo.svg'} in a browser, or load {output / 'demo.speedscope.json'} at https://www.speedscope.app",
        err=True,
    )


def _tell(text: str) -> None:
    click.echo(text, err=True)
