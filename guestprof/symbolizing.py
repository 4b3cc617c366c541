"""A recording and the options that name files of this machine become a recording with source lines, and words about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from guest.debuginfod import Debuginfod
from guest.elf.kernel_image import open_image
from guest.elf.source_cache import SourceCache
from guest.host_files import HostFiles, HostFinder, known_anchors
from guest.host_kernel import FinderOf, HostKernel, KernelFinder, NamedKernel, SearchedKernel
from guest.symbolize import Symbolized, symbolize
from guest.system_map import SystemMap, is_system_map
from recording.errors import BadImageError
from recording.reader import Recording


def run_symbolize(path: Path, host_files: HostFiles, *, quiet: bool) -> list[Symbolized]:
    """Symbolize a recording and say what came of it. Raises BadImageError where ``--vmlinux`` is not of the guest's kernel."""

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    cache = SourceCache.of_user()

    def finder_of(recording: Recording) -> HostFinder:
        return make_finder(host_files, cache, recording.meta.get("kernel_release"), say)

    done = symbolize(path, finder_of, cache, say)
    for each in done:
        lines = f"lines of {each.with_lines:,} of {each.addresses:,} addresses, {each.inlined:,} inlined frames"
        say(f"{each.image}: {lines}, from {each.file}")
    return done


def make_finder(host_files: HostFiles, cache: SourceCache, release: object, tell: Callable[[str], None]) -> HostFinder:
    """What finds files where the options and the environment say; release: of the guest's kernel, if it is known."""
    return HostFinder(host_files, cache, Debuginfod(os.environ, tell), release=release if isinstance(release, str) else None)


def open_host_kernel(host_files: HostFiles, *, may_fetch: bool, quiet: bool = True) -> KernelFinder | None:
    """What finds the file of the guest's kernel: the one that ``--vmlinux`` names, else where other options and the environment
    say; None where nothing does. may_fetch: see ``Debuginfod``.

    Raises BadImageError where ``--vmlinux`` holds no kernel, or nothing that is to be learnt.
    """
    cache = SourceCache.of_user()

    def finders(files: HostFiles, servers: Debuginfod) -> FinderOf:
        return lambda release: HostFinder(files, cache, servers, release=release)

    # While the guest is sampled nothing is fetched.
    known = Debuginfod(os.environ, may_fetch=False)
    if host_files.vmlinux is None:
        if host_files.is_empty and not os.environ.get("DEBUGINFOD_URLS"):
            return None
        servers = Debuginfod(os.environ, None if quiet else partial(click.echo, err=True), may_fetch=may_fetch)
        files = finders(host_files, known)
        return SearchedKernel(finders(host_files, servers), files=files, any_build=host_files.any_build)
    if is_system_map(host_files.vmlinux):
        return NamedKernel(SystemMap(host_files.vmlinux), finders(replace(host_files, vmlinux=None), known))
    file = open_image(host_files.vmlinux)
    if not file.has_symbols:
        file.close()
        raise BadImageError(f"{file.path} has no symbols, so nothing is to be learnt from it; name one of a -dbg package")
    kernel = HostKernel(file, any_build=host_files.any_build)
    kernel.prepare()
    # Rather now than later, too.
    known_anchors(file, cache)
    return NamedKernel(kernel, finders(host_files, known))
