"""Every error that guestprof reports to a user, by whose fault it is.

A message is one sentence that names the address, packet, file or option, and says what to do about it. The command line prints
the message and nothing else; no traceback reaches a user.
"""

from __future__ import annotations


class GuestprofError(Exception):
    """Root of all errors that guestprof raises on purpose."""


class TransportError(GuestprofError):
    """The connection to QEMU could not be opened, or broke."""


class StubError(GuestprofError):
    """The other end is no gdb stub, or it broke the gdb remote protocol."""


class UnsupportedTargetError(GuestprofError):
    """The stub works, but the guest is one that guestprof cannot profile."""


class GuestMemoryError(GuestprofError):
    """Guest memory could not be read, or holds what no guest should hold."""


class BadImageError(GuestprofError):
    """A kernel image, symbol table or unwind table is damaged or of an unknown format."""


class StorageError(GuestprofError):
    """A disk, disk image or shared directory of the guest could not be read, or its file system is damaged."""


class BadRecordingError(GuestprofError):
    """A recording cannot be opened, or is not one of ours."""


class UnknownFunctionError(GuestprofError):
    """A function that no selected sample shows."""


class UnknownMarkError(GuestprofError):
    """A moment that the user named is not in a recording."""


class MissingDependencyError(GuestprofError):
    """A program or package that this job needs is not installed."""
