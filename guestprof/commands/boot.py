"""``guestprof boot``: start a guest and profile it from its first instruction on."""

from __future__ import annotations

import re

import click

from guestprof.boot_run import BootOptions, record_boots
from guestprof.engines import EngineOptions, engine_options
from guestprof.options import SamplingOptions, sampling_options
from guestprof.recording_run import run_options
from guestprof.signals import raise_on_sigterm
from guestprof.values import RegexType


@click.command(context_settings={"ignore_unknown_options": True})
@sampling_options()
@engine_options
@click.option("--until-console", type=RegexType(), metavar="REGEX", help="Stop when a line of the console matches.")
@click.option("--until-symbol", metavar="NAME", help="Stop when this function of the kernel or of a file of --elf is reached.")
@click.option("--until-process", metavar="NAME", help="Stop when a sample shows a process or thread of this name.")
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Boot so many times, one after the other, each into a file of its own (FILE-1.guestprof, ...).",
)
@click.option("--keep-running", is_flag=True, help="Leave the guest running afterwards, with its gdb stub and QMP socket.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- QEMU ARGS...")
def boot(
    *,
    sampling: SamplingOptions,
    engine: EngineOptions,
    until_console: re.Pattern[str] | None,
    until_symbol: str | None,
    until_process: str | None,
    runs: int,
    keep_running: bool,
    command: tuple[str, ...],
) -> None:
    """Start QEMU halted, with a gdb stub and a QMP socket of our own, and profile the guest from its first instruction.

    The console that --until-console watches is QEMU's standard output (-nographic, -serial stdio) or the file of -serial file:PATH.

    \b
    guestprof boot -d 20 -- qemu-system-x86_64 -m 1G -nographic -kernel vmlinuz -initrd initrd -append console=ttyS0
    """  # noqa: D301  (click reads \b)
    raise_on_sigterm()
    if runs > 1 and keep_running:
        raise click.UsageError("--keep-running is for one boot: its guest would run beside the next one (--runs)")
    run = run_options(sampling, engine, until_symbol=until_symbol, until_process=until_process)
    record_boots(command, run, BootOptions(until_console, keep_running), runs)
