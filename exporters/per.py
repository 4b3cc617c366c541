"""What each time line of a file is of, where a format has several."""

from __future__ import annotations

from enum import StrEnum


class Per(StrEnum):
    """The choices of ``--per``."""

    VCPU = "vcpu"
    """All that a vCPU did, with gaps where it was not sampled; stacks begin with the process where tasks are known."""
    PROCESS = "process"
    """The time that a process ran, on any vCPU and without gaps."""
