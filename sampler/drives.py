"""QEMU's command line → where the guest's storage lies on this host: disk images, initrd, shared directories.

What QEMU itself says over QMP is better (hot-plugged disks, changed media); this is for where there is no QMP, and for what
QMP does not tell.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from guest.storage.host import Share
from guest.storage.images import ImageFile

_MAX_DEPTH = 32
_DISK_OPTIONS = ("hda", "hdb", "hdc", "hdd", "cdrom", "sd", "mtdblock")
_PROTOCOLS = ("file", "host_device", "host_cdrom")
_FIRMWARE = "pflash"


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk of the guest in a file of this host."""

    name: str
    image: ImageFile


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What the command line says. virtiofs: (mount tag, socket of its virtiofsd). Paths are absolute if cwd is known."""

    drives: tuple[Drive, ...] = ()
    initrds: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    virtiofs: tuple[tuple[str, str], ...] = ()
    cwd: str = ""


def split_options(arguments: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each option without its dashes, and the word behind it."""
    for index, argument in enumerate(arguments[1:], 1):
        if argument.startswith("-") and len(argument) > 1:
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            yield argument.lstrip("-"), following


def split_settings(value: str, implied: str) -> dict[str, str]:
    """``type,key=value,...`` (a comma within a value is doubled) → dictionary."""
    settings = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if equals:
            settings[key] = text
        elif index == 0:
            settings[implied] = key
    return settings


def parse_storage(options: Sequence[tuple[str, str]], cwd: Path | None) -> StorageFacts:
    """What the options say of storage; what cannot be understood (images on other machines) is left out."""
    initrds = tuple(_absolute(value, cwd) for option, value in options if option == "initrd")
    shares = []
    for option, value in options:
        if option in ("virtfs", "fsdev"):
            settings = split_settings(value, "fsdriver")
            if settings.get("fsdriver") == "local" and "path" in settings:
                shares.append(Share("9p", _absolute(settings["path"], cwd), settings.get("mount_tag", "")))
    devices = [_device_settings(value) for option, value in options if option == "device"]
    virtiofs = tuple(_virtiofs_sockets(options, devices, cwd))
    return StorageFacts(tuple(_drives(options, devices, cwd)), initrds, tuple(shares), virtiofs, str(cwd or ""))


def _device_settings(value: str) -> dict[str, str]:
    if value.startswith("{"):
        return {key: str(text) for key, text in _parse_json(value).items()}
    return split_settings(value, "driver")


def _virtiofs_sockets(
    options: Sequence[tuple[str, str]], devices: Sequence[Mapping[str, str]], cwd: Path | None
) -> Iterable[tuple[str, str]]:
    chardevs = [split_settings(value, "backend") for option, value in options if option == "chardev"]
    paths = {settings.get("id", ""): settings["path"] for settings in chardevs if "path" in settings}
    for settings in devices:
        name = settings.get("chardev", "")
        if settings.get("driver", "").startswith("vhost-user-fs") and name in paths:
            yield settings.get("tag", ""), _absolute(paths[name], cwd)


def _drives(options: Sequence[tuple[str, str]], devices: Sequence[Mapping[str, str]], cwd: Path | None) -> Iterable[Drive]:
    """The disks in the order of the command line: those with a device of their own option, then those that a -device names."""
    named: dict[str, Drive] = {}
    nodes: dict[str, Any] = {}
    used: dict[Drive, None] = {}
    counts: Counter[str] = Counter()
    for number, (option, value) in enumerate(options):
        if option == "blockdev":
            node = _parse_json(value) if value.startswith("{") else _nest(split_settings(value, "driver"))
            nodes[str(node.get("node-name", ""))] = node
        elif option == "drive":
            settings = split_settings(value, "file")
            drive = _drive(settings, cwd, counts)
            if drive is not None and settings.get("if") != _FIRMWARE:
                named[settings.get("id", f"#{number}")] = drive
                if settings.get("if") != "none":
                    used[drive] = None
        elif option in _DISK_OPTIONS and (image := _image_of(value, None, cwd)) is not None:
            used[Drive(option, image)] = None
    for name in [settings["drive"] for settings in devices if "drive" in settings]:
        if name in named:
            used[named[name]] = None
        elif (image := _resolve(nodes.get(name), nodes, cwd)) is not None:
            used[Drive(name, image)] = None
    return used


def image_of_query(image: Mapping[str, Any], cwd: str) -> ImageFile | None:
    """``ImageInfo`` of query-block (qapi/block-core.json) → the files of the chain; None where they are no plain files."""
    chain: list[Mapping[str, Any]] = []
    at: Any = image
    while isinstance(at, Mapping) and len(chain) < _MAX_DEPTH:
        chain.append(at)
        at = at.get("backing-image")
    found: ImageFile | None = None
    for each in reversed(chain):
        made = _image_of(str(each.get("filename", "")), str(each.get("format", "raw")), Path(cwd) if cwd else None)
        if made is None:
            return None
        found = ImageFile(made.path, made.format, found)
    return found


def _drive(settings: Mapping[str, str], cwd: Path | None, counts: Counter[str]) -> Drive | None:
    interface = settings.get("if", "drive")
    counts[interface] += 1
    form = settings.get("format") or settings.get("driver")
    image = _image_of(settings.get("file") or settings.get("file.filename") or settings.get("filename", ""), form, cwd)
    return Drive(settings.get("id") or f"{interface}{counts[interface] - 1}", image) if image else None


def _image_of(name: str, form: str | None, cwd: Path | None) -> ImageFile | None:
    """An image that is a file here; None for ``nbd://``, ``rbd:``, ``json:`` and the like."""
    name = name.removeprefix("file:")
    before, colon, _ = name.partition(":")
    if not name or (colon and "/" not in before) or name.startswith("/dev/fdset/"):
        return None
    return ImageFile(_absolute(name, cwd), "raw" if form in _PROTOCOLS else form)


def _resolve(node: Any, nodes: Mapping[str, Any], cwd: Path | None, depth: int = 0) -> ImageFile | None:  # noqa: ANN401  (JSON)
    """The image of a node of ``-blockdev``: by reference or in place, through filters, with its backing chain."""
    if isinstance(node, str):
        node = nodes.get(node)
    if not isinstance(node, Mapping) or depth > _MAX_DEPTH:
        return None
    driver = str(node.get("driver", ""))
    if driver in _PROTOCOLS:
        return _image_of(str(node.get("filename", "")), "raw", cwd)
    below = _resolve(node.get("file"), nodes, cwd, depth + 1)
    if below is None or driver not in ("qcow2", "vmdk", "vdi", "vhdx", "vpc"):
        return below
    return ImageFile(below.path, driver, _resolve(node.get("backing"), nodes, cwd, depth + 1))


def _parse_json(value: str) -> dict[str, Any]:
    try:
        parsed = json.loads(value)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _nest(settings: Mapping[str, str]) -> dict[str, Any]:
    """``file.filename=x`` → {"file": {"filename": "x"}}."""
    nested: dict[str, Any] = {}
    for key, text in settings.items():
        at = nested
        *outer, last = key.split(".")
        for name in outer:
            following = at.setdefault(name, {})
            if not isinstance(following, dict):
                break
            at = following
        else:
            at[last] = text
    return nested


def _absolute(path: str, cwd: Path | None) -> str:
    return str(cwd / path if cwd is not None else path)


def find_virtiofs_shares(sockets: Sequence[tuple[str, str]]) -> list[Share]:
    """The directories that the virtiofsd processes behind these sockets share."""
    tags = {path: tag for tag, path in sockets}
    found: dict[Share, None] = {}
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("unix"):
            if str(connection.laddr) in tags and connection.pid:
                with contextlib.suppress(psutil.Error):
                    directory = shared_directory(psutil.Process(connection.pid).cmdline())
                    if directory:
                        found[Share("virtiofs", directory, tags[str(connection.laddr)])] = None
    return list(found)


def shared_directory(arguments: Sequence[str]) -> str | None:
    """``--shared-dir DIR`` (the virtiofsd in Rust) or ``-o source=DIR`` (the one in C) of a virtiofsd; None for other programs."""
    if not arguments or not Path(arguments[0]).name.startswith("virtiofsd"):
        return None
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument == "--shared-dir":
            return following
        if argument.startswith("--shared-dir="):
            return argument.partition("=")[2]
        if argument == "-o":
            for setting in following.split(","):
                if setting.startswith("source="):
                    return setting.partition("=")[2]
    return None
