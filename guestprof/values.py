"""Values that several commands take on the command line. Nothing here needs a guest, so that looking at recordings starts fast."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_vcpus(text: str) -> tuple[int, ...]:
    """``0,2-4`` as (0, 2, 3, 4). Raises click.BadParameter for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) - int(first) not in range(4096)):
            raise click.BadParameter(f"{text!r} is no list of vCPU numbers; write for example 0,2-3", param_hint="--vcpu")
        numbers.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(numbers))


class RegexType(click.ParamType[re.Pattern[str]]):
    """A regular expression of Python's, which may be found anywhere in a name."""

    name = "regex"

    def convert(
        self, value: str | re.Pattern[str], parameter: click.Parameter | None, context: click.Context | None
    ) -> re.Pattern[str]:
        """The compiled pattern."""
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", parameter, context)
