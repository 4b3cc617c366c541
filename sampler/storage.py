"""A running QEMU → contents of the guest's files, in steps: its disks through QEMU's own block layer, image files, initrd, shares.

Nothing is opened before the first file is wanted. Then QEMU is asked (QMP) to serve its disks, read-only, on a private unix socket
(``block-export-add`` of qapi/block-export.json), and a process of ours (``sampler/storage_worker.py``) reads them. Where that is
not possible, or QEMU has ended, the image files are read instead: without what QEMU has not written out yet.

``close`` takes everything away again; the guard (``sampler/guard.py``) does where we are killed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from guest.memory import Steps
from guest.storage.images import ImageFile
from recording.errors import GuestprofError, StorageError
from sampler.discovery import QemuProcess
from sampler.drives import StorageFacts, find_virtiofs_shares, image_of_query
from sampler.guard import EXPORT_PREFIX
from sampler.qmp import Qmp
from sampler.storage_link import Link, StoredFile

_MIN_DISK = 1 << 16
_FIRMWARE = "pflash"
_FIND_TIMEOUT_S = 60.0
_MAX_DEATHS = 3


class Identity(Protocol):
    """What is needed of a ``guest.user.mappings.FileIdentity``."""

    @property
    def number(self) -> int:
        """The inode's number."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def file_system(self) -> str:
        """The kernel's name of its type."""
        ...

    @property
    def source(self) -> str:
        """``s_id``."""
        ...

    @property
    def uuid(self) -> bytes | None:
        """``s_uuid``."""
        ...

    @property
    def mtime_ns(self) -> int:
        """Time of last change."""
        ...


class GuestDisks:
    """The storage of one guest. Leaving the context takes QEMU's exports and our worker away."""

    def __init__(
        self,
        qmp: Qmp | None,
        process: QemuProcess | None,
        *,
        socket: Path | None = None,
        sysroots: Sequence[Path] = (),
        symbol_dirs: Sequence[Path] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """qmp: None where there is none. socket: where QEMU's NBD server shall listen, in a directory that only we and QEMU enter
        (the guard must know it); None: image files only. process: QEMU, if it runs on this host.
        """
        self._qmp = qmp
        self._process = process
        self._facts = process.storage if process is not None else StorageFacts()
        self._socket = socket
        self._directories = {
            "sysroots": [str(path.absolute()) for path in sysroots],
            "symbol_dirs": [str(path.absolute()) for path in symbol_dirs],
        }
        self._clock = clock
        self._is_serving = False
        self._link: Link | None = None
        self._deaths = 0
        self._is_closed = False
        self._sources: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def find_file(self, identity: Identity, path: str) -> Steps[StoredFile | str]:
        """A file that the guest has mapped, or a sentence why it cannot be had and what would help. path: as the guest sees it."""
        wanted = {
            "number": identity.number,
            "size": identity.size,
            "file_system": identity.file_system,
            "source": identity.source,
            "uuid": (identity.uuid or b"").hex(),
            "mtime_ns": identity.mtime_ns,
            "path": path,
        }
        link, answer = yield from self._ask({"job": "find", "file": wanted})
        if link is None or "file" not in answer:
            return str(answer.get("miss", "its storage could not be read"))
        return StoredFile(link, answer["file"], answer["size"], answer["origin"])

    def find_symbol_files(self, build_id: str, path: str) -> Steps[list[StoredFile]]:
        """Files of ``--symbol-dir`` that may have a build ID (hex), best first; the caller looks whether they do."""
        if not self._directories["symbol_dirs"]:
            return []
        link, answer = yield from self._ask({"job": "symbols", "build_id": build_id, "path": path})
        if link is None:
            return []
        return [StoredFile(link, each["file"], each["size"], each["origin"]) for each in answer.get("files", [])]

    def _ask(self, request: dict[str, Any]) -> Steps[tuple[Link | None, dict[str, Any]]]:
        """An answer of the worker, which is started if there is none; without a link where there is no answer."""
        if self._is_closed:
            return None, {"miss": "the guest's storage is closed"}
        if self._link is not None and self._link.is_closed:
            self._end_worker()
        if self._deaths >= _MAX_DEATHS:
            return None, {"miss": "reading the guest's storage failed again and again; --sysroot DIR gives a copy of its files"}
        link: Link | None = None
        try:
            if self._sources is None:
                self._sources = yield from self._find_sources()
            if self._link is None:
                self._link = Link(self._clock)
                self._link.forget(self._link.send(self._sources))
            link = self._link
            head = yield from self._await(link, link.send(request))
        except StorageError as error:
            if link is not None and link is self._link:
                self._end_worker()
            return None, {"miss": str(error)}
        return link, head

    def _await(self, link: Link, ticket: int) -> Steps[dict[str, Any]]:
        deadline = self._clock() + _FIND_TIMEOUT_S
        try:
            while not link.poll(ticket):
                if self._clock() > deadline:
                    raise StorageError("reading its file system did not end in time")
                yield
            return link.collect(ticket).head
        except GeneratorExit:
            link.forget(ticket)
            raise

    def _end_worker(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._deaths += 1
            link.close()

    # What there is

    def _find_sources(self) -> Steps[dict[str, Any]]:
        missing: list[str] = []
        disks: list[dict[str, Any]] = []
        if self._qmp is not None:
            try:
                disks = yield from self._export_disks(self._qmp, missing)
            except GuestprofError as error:
                missing.append(str(error))
        if not disks:
            disks = [_describe(drive.name, None, drive.image) for drive in self._facts.drives]
        if not disks and self._qmp is None and self._process is None and not self._directories["sysroots"]:
            missing.append("QEMU's disks are not known: --qmp PATH tells them")
        yield
        shares = [*self._facts.shares, *(find_virtiofs_shares(self._facts.virtiofs) if self._facts.virtiofs else ())]
        return {
            "job": "open",
            "disks": disks,
            "initrds": list(self._facts.initrds),
            "shares": [dataclasses.asdict(share) for share in shares],
            "missing": missing,
            **self._directories,
        }

    def _export_disks(self, qmp: Qmp, missing: list[str]) -> Steps[list[dict[str, Any]]]:
        """Every disk that QEMU has now, exported if that can be."""
        found = [block for block in qmp.execute("query-block") if _is_disk(block)]
        yield
        if found and self._socket is not None:
            try:
                # Before, not behind: it may be interrupted when QEMU has already done it.
                self._is_serving = True
                qmp.start_nbd_server(str(self._socket))
            except GuestprofError as error:
                self._is_serving = self._socket.exists()
                missing.append(f"QEMU does not serve its disks ({error})")
            yield
        disks = []
        for number, block in enumerate(found):
            inserted = block["inserted"]
            name = str(block.get("device") or _last(str(block.get("qdev", ""))) or inserted["node-name"])
            identifier = f"{EXPORT_PREFIX}{number}"
            nbd = None
            if self._is_serving:
                try:
                    qmp.add_export(identifier, str(inserted["node-name"]))
                    nbd = (str(self._socket), identifier)
                except GuestprofError as error:
                    missing.append(f"QEMU does not serve {name} ({error})")
                yield
            image = image_of_query(inserted.get("image", {}), self._facts.cwd) if self._process is not None else None
            if nbd is not None or image is not None:
                disks.append(_describe(name, nbd, image))
        return disks

    def close(self) -> bool:
        """Take the exports and the worker away; whether QEMU is known to serve nothing of ours any more."""
        self._is_closed = True
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if not self._is_serving or self._qmp is None:
            return True
        try:
            self._qmp.close_exports(EXPORT_PREFIX)
        except GuestprofError:
            return False
        self._is_serving = False
        return True


def _is_disk(block: dict[str, Any]) -> bool:
    inserted = block.get("inserted")
    if not isinstance(inserted, dict) or str(block.get("device", "")).startswith(_FIRMWARE):
        return False
    return int(inserted.get("image", {}).get("virtual-size", 0)) >= _MIN_DISK


def _last(path: str) -> str:
    """``/machine/peripheral/disk0/virtio-backend`` → disk0."""
    names = [name for name in path.split("/") if name and name != "virtio-backend"]
    return names[-1] if names else ""


def _describe(name: str, nbd: tuple[str, str] | None, image: ImageFile | None) -> dict[str, Any]:
    return {"name": name, "nbd": nbd, "image": None if image is None else dataclasses.asdict(image)}
