"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """As ``guestprof --version`` prints it; "unknown" where the package runs without being installed."""
    try:
        return metadata.version("guestprof")
    except metadata.PackageNotFoundError:
        return "unknown"
