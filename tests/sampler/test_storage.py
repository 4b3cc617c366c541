"""A QEMU's facts → files in steps, through the worker process; workers that die, jobs that nobody waits for any more."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from guest.memory import Steps, run_steps
from guest.storage.host import Share
from guest.storage.images import ImageFile
from recording.errors import StorageError, StubError, TransportError
from sampler.discovery import QemuProcess
from sampler.drives import Drive, StorageFacts
from sampler.storage import GuestDisks
from sampler.storage_link import Link, StoredFile
from sampler.storage_worker import serve
from tests.builders.disks import MTIME_S, PROGRAM, ext4_number, make_ext4, make_tree


@dataclass(frozen=True)
class Identity:
    number: int
    size: int = len(PROGRAM)
    file_system: str = "ext4"
    source: str = "vda"
    uuid: bytes | None = bytes.fromhex("00112233445566778899aabbccddeeff")
    mtime_ns: int = MTIME_S * 10**9


PATH = "/usr/bin/program"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ext4(tmp_path_factory.mktemp("images") / "ext4", tree)


@pytest.fixture(scope="module")
def program(image: Path) -> Identity:
    return Identity(ext4_number(image, PATH))


def qemu(*drives: Path, **facts: Any) -> QemuProcess:
    found = tuple(Drive(f"virtio{number}", ImageFile(str(path), "raw")) for number, path in enumerate(drives))
    return QemuProcess(os.getpid(), "", None, None, None, None, StorageFacts(found, **facts))


def find(disks: GuestDisks, identity: Identity, path: str = PATH) -> StoredFile | str:
    return run_steps(disks.find_file(identity, path))


def found(disks: GuestDisks, identity: Identity, path: str = PATH) -> StoredFile:
    file = find(disks, identity, path)
    assert isinstance(file, StoredFile), file
    return file


def test_an_image_without_qmp(image: Path, program: Identity) -> None:
    with GuestDisks(None, qemu(image)) as disks:
        file = found(disks, program)
        assert (file.size, file.origin) == (len(PROGRAM), "ext4 on virtio0")
        assert file.read(0, len(PROGRAM)) == PROGRAM
        assert file.read(100, 0) == b""
        assert file.read(len(PROGRAM) - 1, 2) is None
        assert file.read(-1, 1) is None
    assert file.read(0, 1) is None
    assert find(disks, program) == "the guest's storage is closed"


def test_pieces_in_and_out_of_order(image: Path, program: Identity) -> None:
    """The piece behind a large one is asked for ahead; it is taken where it is the next one, and dropped where it is not."""
    with GuestDisks(None, qemu(image)) as disks:
        file = found(disks, program)
        size = 1 << 17
        for offset, length in ((0, size), (size, size), (2 * size, 10), (0, size), (0, size), (size, 5), (5, 1), (0, 2 * size)):
            assert file.read(offset, length) == PROGRAM[offset : offset + length]
        assert file.read(0, size) == PROGRAM[:size]
        other = found(disks, program)
        assert other.read(7, size) == PROGRAM[7 : 7 + size]
        del file
        assert other.read(7 + size, 9) == PROGRAM[7 + size : 16 + size]


def test_nothing_is_started_before_it_is_needed(image: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with GuestDisks(None, qemu(image)):
        assert {child.pid for child in psutil.Process().children()} == before


def test_the_worker_ends_with_the_link_and_with_its_input() -> None:
    link = Link()
    worker = psutil.Process(link.pid)
    link.wait(link.send({"job": "symbols", "build_id": "", "path": ""}), 60)
    link.close()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    # A profiler that is killed takes its end of the pipe with it.
    output = io.BytesIO()
    serve(io.BytesIO(b""), output)
    assert output.getvalue() == b""


def test_a_missing_file_says_why(image: Path, program: Identity) -> None:
    with GuestDisks(None, qemu(image)) as disks:
        assert find(disks, Identity(program.number, uuid=b"x" * 16)) == (
            "no file system ext4 with UUID 78787878787878787878787878787878 (vda) was found on the guest's disks;"
            " there are virtio0: ext4"
        )
    with GuestDisks(None, None) as disks:
        assert "QEMU's disks are not known: --qmp PATH tells them" in str(find(disks, program))
    with GuestDisks(None, qemu(Path("/nonexistent/image"))) as disks:
        assert "cannot open /nonexistent/image: No such file or directory" in str(find(disks, program))


def test_shares_sysroots_and_symbol_files(tree: Path) -> None:
    about = (tree / "usr/bin/program").stat()
    shares = (Share("9p", str(tree), "root"),)
    with GuestDisks(None, qemu(shares=shares), sysroots=[tree], symbol_dirs=[tree]) as disks:
        file = found(disks, Identity(about.st_ino, file_system="9p", uuid=None))
        assert file.origin == f"9p share {tree}"
        assert file.read(0, 100) == PROGRAM[:100]
        assert found(disks, Identity(1, file_system="zfs", uuid=None)).origin == f"--sysroot {tree}"
        (symbols,) = run_steps(disks.find_symbol_files("abcdef", PATH))
        assert symbols.read(0, 10) == PROGRAM[:10]
        assert run_steps(disks.find_symbol_files("nonsense", PATH)) == []
    with GuestDisks(None, None) as disks:
        assert run_steps(disks.find_symbol_files("abcdef", PATH)) == []


def test_jobs_at_the_same_time_and_jobs_that_are_given_up(image: Path, program: Identity) -> None:
    with GuestDisks(None, qemu(image)) as disks:
        for _ in range(3):
            given_up = disks.find_file(program, PATH)
            next(given_up)
            given_up.close()
        jobs = [disks.find_file(identity, PATH) for identity in (program, Identity(2), program)]
        results: dict[int, StoredFile | str] = {}
        while len(results) < len(jobs):
            for number, job in enumerate(jobs):
                step(job, number, results)
        first, second, third = (results[number] for number in range(3))
        assert isinstance(first, StoredFile)
        assert isinstance(second, str)
        assert isinstance(third, StoredFile)
        assert first.read(5, 50) == third.read(5, 50) == PROGRAM[5:55]
        del first
        assert third.read(5, 50) == PROGRAM[5:55]


def step(job: Steps[StoredFile | str], number: int, results: dict[int, StoredFile | str]) -> None:
    if number not in results:
        try:
            next(job)
        except StopIteration as end:
            results[number] = end.value


def test_a_worker_that_dies_is_replaced_until_it_dies_again_and_again(image: Path, program: Identity) -> None:
    with GuestDisks(None, qemu(image)) as disks:
        for _ in range(3):
            file = found(disks, program)
            assert disks._link is not None
            os.kill(disks._link.pid, signal.SIGKILL)
            assert file.read(0, 10) is None
        assert find(disks, program) == (
            "reading the guest's storage failed again and again; --sysroot DIR gives a copy of its files"
        )


def test_a_worker_that_does_not_answer_is_ended(image: Path, program: Identity) -> None:
    times = iter(range(0, 100_000, 50))
    with GuestDisks(None, qemu(image), clock=lambda: next(times)) as disks:
        job = disks.find_file(program, PATH)
        while disks._link is None:
            next(job)
        worker = disks._link.pid
        os.kill(worker, signal.SIGSTOP)
        assert run_steps(job) == "reading its file system did not end in time"
        assert not psutil.pid_exists(worker)


# QMP


class Machine:
    """A Qmp that answers from a table; a command that is not in it is refused."""

    def __init__(self, answers: dict[str, Any], *, path: Path | None = None) -> None:
        self.answers = answers
        self.path = path
        self.calls: list[str] = []

    def execute(self, command: str, **_arguments: object) -> Any:
        self.calls.append(command)
        if command not in self.answers:
            raise StubError(f"QEMU refuses {command}")
        return self.answers[command]

    def start_nbd_server(self, path: str) -> None:
        self.execute("nbd-server-start", path=path)

    def add_export(self, identifier: str, _node: str) -> None:
        self.execute(f"add {identifier}")

    def close_exports(self, prefix: str) -> None:
        self.execute(f"close {prefix}")


def block(image: Path, **more: object) -> dict[str, Any]:
    described = {"filename": str(image), "format": "raw", "virtual-size": image.stat().st_size}
    return {
        "device": "",
        "qdev": "/machine/peripheral/disk0/virtio-backend",
        "inserted": {"node-name": "n", "image": described},
        **more,
    }


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        # Another NBD server runs already: it is left alone, and so are its exports.
        ({}, ["query-block", "nbd-server-start"]),
        (
            {"nbd-server-start": {}, "close guestprof-": {}},
            ["query-block", "nbd-server-start", "add guestprof-0", "close guestprof-"],
        ),
    ],
)
def test_disks_that_qemu_does_not_serve_are_read_from_their_files(
    image: Path, program: Identity, tmp_path: Path, answers: dict[str, Any], calls: list[str]
) -> None:
    blocks = [block(image), {"device": "cd0", "tray_open": True}, block(image, device="pflash0")]
    machine = Machine({"query-block": blocks, **answers})
    with GuestDisks(machine, qemu(), socket=tmp_path / "nbd") as disks:  # type: ignore[arg-type]
        file = found(disks, program)
        assert file.origin == "ext4 on disk0"
        assert file.read(0, 10) == PROGRAM[:10]
        assert "QEMU does not serve" in str(find(disks, Identity(2, file_system="xfs")))
    assert machine.calls == calls


def test_exports_that_cannot_be_closed_are_told(image: Path, program: Identity, tmp_path: Path) -> None:
    answers: dict[str, Any] = {"query-block": [block(image)], "nbd-server-start": {}, "add guestprof-0": {}}
    machine = Machine(answers)
    disks = GuestDisks(machine, qemu(), socket=tmp_path / "nbd")  # type: ignore[arg-type]
    assert disks.close() is True
    disks = GuestDisks(machine, qemu(), socket=tmp_path / "nbd")  # type: ignore[arg-type]
    # Its NBD server does not answer: the file is read.
    assert found(disks, program).origin == "ext4 on disk0"
    assert disks.close() is False
    machine.answers["close guestprof-"] = {}
    assert disks.close() is True
    assert disks.close() is True


def test_a_qemu_that_has_ended_still_has_its_files(image: Path, program: Identity, tmp_path: Path) -> None:
    class Gone(Machine):
        def execute(self, command: str, **_arguments: object) -> Any:
            raise TransportError(f"the connection broke during {command}")

    with GuestDisks(Gone({}), qemu(image), socket=tmp_path / "nbd") as disks:  # type: ignore[arg-type]
        assert found(disks, program).origin == "ext4 on virtio0"


# The link


def liar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes) -> Link:
    """A worker that says this."""
    program = tmp_path / "python"
    (tmp_path / "answer").write_bytes(answer)
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\nwhile read -r line; do :; done\n", "ascii")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    return Link()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "did not answer in time"),
        (b'{"size": 3}\nab', "did not answer in time"),
        (b'{"size": 99999999}\n', "answers nonsense"),
        (b"{}\n{}\n", "answers nonsense"),
        (b"x" * 5_000_000, "answers nonsense"),
    ],
)
def test_answers_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes, said: str) -> None:
    link = liar(monkeypatch, tmp_path, answer)
    with pytest.raises(StorageError, match=said):
        link.wait(link.send({}), 0.3 if "in time" in said else 30)
    link.close()
    with pytest.raises(StorageError, match="has ended"):
        link.send({})


def test_requests_that_fail_are_answered() -> None:
    requests: list[dict[str, Any]] = [
        {"job": "find", "file": {**vars(Identity(7)), "uuid": "", "path": ""}},
        {"job": "read", "file": 1, "offset": 0, "size": 10},
        {"job": "read", "file": 1, "offset": 0, "size": 1 << 40},
    ]
    output = io.BytesIO()
    called: list[Callable[[], None]] = []
    serve(io.BytesIO(b"".join(json.dumps(each).encode() + b"\n" for each in requests)), output, limit=lambda: called.append(print))
    answers = [json.loads(line) for line in output.getvalue().splitlines()]
    assert answers[0]["miss"].startswith("no file system ext4 (vda) was found")
    assert answers[1:] == [{"size": -1}, {"size": -1}]
    assert len(called) == 3
