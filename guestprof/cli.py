"""The command line: the group of commands, and how errors and signals become exit statuses.

0: done (Ctrl-C with data too); 1: error; 2: wrong usage; 130: Ctrl-C without data; 143: SIGTERM, after cleaning up.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from guestprof.signals import Terminated
from guestprof.version import version
from recording.errors import GuestprofError

_ERROR = 1
_INTERRUPTED = 130
_TERMINATED = 143


_COMMANDS = {
    **{name: name for name in ("record", "boot", "compare", "report", "timeline", "diff", "export", "dump", "demo")},
    **{name: f"{name}_command" for name in ("symbolize", "annotate")},
}
"""The commands and the functions in ``guestprof/commands/`` that they are."""


class _Commands(click.Group):
    """Loads a command when it is asked for: all of them take longer to load than most take to run."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"guestprof.commands.{name}"), _COMMANDS[name])
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version(), prog_name="guestprof")
def cli() -> None:
    """Sampling profiler for QEMU guests, from outside: true call stacks of Linux guests, through QEMU's gdb stub.

    Nothing is installed in the guest, and no symbol file is needed.

    \b
    guestprof demo                         boot a stock kernel and look at its flame graph
    guestprof record -d 10                 profile the QEMU that runs on this machine
    guestprof boot -d 20 -- qemu-system-x86_64 ...
    guestprof report FILE
    guestprof timeline FILE
    guestprof diff BEFORE AFTER
    guestprof compare --accel kvm --accel tcg -d 20 -- qemu-system-x86_64 ...
    guestprof export FILE -f speedscope
    guestprof symbolize FILE --vmlinux VMLINUX
    guestprof annotate FILE FUNCTION
    """  # noqa: D301  (click reads \b)


def run() -> None:
    """Run a command and exit. No traceback reaches a user for anything that is not our own mistake."""
    try:
        status = cli.main(prog_name="guestprof", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GuestprofError as error:
        click.echo(f"guestprof: {error}", err=True)
        sys.exit(_ERROR)
    except Terminated:
        click.echo("guestprof: terminated", err=True)
        sys.exit(_TERMINATED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("guestprof: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); Python would complain once more when it flushes at exit.
        sys.stderr.close()
        sys.exit(_ERROR)
    except Exception as error:  # the last resort: a mistake of ours is one sentence too
        if "GUESTPROF_TRACEBACK" in os.environ:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
        click.echo(f"guestprof: internal error: {what}; please report it, with what GUESTPROF_TRACEBACK=1 prints", err=True)
        sys.exit(_ERROR)
    sys.exit(status if isinstance(status, int) else 0)
