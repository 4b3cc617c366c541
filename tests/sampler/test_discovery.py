"""QEMU's options → sockets, and which target an option means."""

from __future__ import annotations

from pathlib import Path

import pytest

import sampler.discovery
from recording.errors import TransportError
from sampler.discovery import QemuProcess, parse_command_line, resolve_target
from sampler.qmp import parse_chardev_name, socket_address

QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("options", "gdb", "qmp"),
    [
        ("", None, None),
        ("-s", "127.0.0.1:1234", None),
        ("--s", "127.0.0.1:1234", None),
        ("-gdb tcp::2345", "127.0.0.1:2345", None),
        ("-gdb tcp:0.0.0.0:2345,server=on", "127.0.0.1:2345", None),
        ("-gdb tcp:[::1]:2345", "[::1]:2345", None),
        ("-gdb unix:/run/g,server=on,wait=off", "unix:/run/g", None),
        ("-gdb unix:g,server=on", "unix:/home/me/g", None),
        ("-chardev socket,id=g0,path=/run/g,server=on -gdb chardev:g0", "unix:/run/g", None),
        ("-gdb chardev:g0 -chardev socket,path=/run/a,,b,id=g0", "unix:/run/a,b", None),
        ("-chardev socket,id=g0,host=localhost,port=99,server=on -gdb chardev:g0", "localhost:99", None),
        ("-chardev pty,id=g0 -gdb chardev:g0", None, None),
        ("-gdb stdio", None, None),
        ("-qmp unix:/run/q,server=on,wait=off", None, "unix:/run/q"),
        ("-qmp tcp:localhost:4444,server=on", None, "localhost:4444"),
        ("-chardev socket,id=m,path=/run/q,server=on -mon chardev=m,mode=control", None, "unix:/run/q"),
        ("-chardev socket,id=m,path=/run/q,server=on -mon m,mode=readline", None, None),
        ("-chardev socket,id=m,fd=7,server=on,wait=off -mon chardev=m,id=monitor,mode=control", None, "unix:/run/libvirt.sock"),
        ("-chardev socket,id=m,fd=8,server=on,wait=off -mon chardev=m,mode=control", None, None),
    ],
)
def test_sockets(options: str, gdb: str | None, qmp: str | None) -> None:
    found = parse_command_line(7, [QEMU, *options.split()], Path("/home/me"), {7: "/run/libvirt.sock"})
    assert (found.gdb, found.qmp, found.architecture) == (gdb, qmp, "x86_64")


@pytest.mark.parametrize(
    ("options", "accelerator"),
    [
        ("", None),
        ("-enable-kvm", "kvm"),
        ("-accel tcg,thread=multi", "tcg"),
        ("-machine q35,accel=kvm", "kvm"),
        ("-M accel=tcg", "tcg"),
        ("-machine accel=kvm:tcg", None),
        ("-accel hvf -machine q35,accel=kvm", "hvf"),
    ],
)
def test_accelerators(options: str, accelerator: str | None) -> None:
    assert parse_command_line(7, [QEMU, *options.split()], None).accelerator == accelerator


def test_names() -> None:
    assert parse_command_line(7, [QEMU, "-name", "guest=web,debug-threads=on"], None).name == "web"
    assert parse_command_line(7, ["/usr/libexec/qemu-kvm", "-name", "web"], None) == QemuProcess(7, "web", None, None, None, None)


ONE = QemuProcess(10, "web", "127.0.0.1:1234", "unix:/run/q", "x86_64", "kvm")
TWO = QemuProcess(11, "", None, None, "aarch64", None)


def given(monkeypatch: pytest.MonkeyPatch, *processes: QemuProcess) -> None:
    monkeypatch.setattr(sampler.discovery, "find_processes", lambda: list(processes))
    monkeypatch.setattr(sampler.discovery, "find_process", {one.pid: one for one in processes}.get)
    monkeypatch.setattr(sampler.discovery, "find_listener", {1234: 10}.get)


def test_the_only_qemu_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ONE)
    found = resolve_target()
    assert (found.gdb, found.qmp, found.pid, found.qmp_is_asked_for) == ("127.0.0.1:1234", "unix:/run/q", 10, False)


@pytest.mark.parametrize(
    ("processes", "options", "message"),
    [
        ((), {}, "no QEMU runs on this machine; start one"),
        ((ONE, TWO), {}, r"choose one with --pid: 10 \(web, x86_64, gdb 127.0.0.1:1234\); 11 \(aarch64, no gdb stub\)"),
        ((TWO,), {}, "QEMU 11 has neither a gdb stub nor a QMP socket: restart it with -s"),
        ((ONE, TWO), {"pid": 11}, "QEMU 11 has neither"),
        ((ONE,), {"pid": 99}, "process 99 is no QEMU"),
        ((ONE,), {"connect": "nonsense"}, "'nonsense' is no address"),
    ],
)
def test_what_cannot_be_resolved_says_why(
    monkeypatch: pytest.MonkeyPatch, processes: tuple[QemuProcess, ...], options: dict[str, object], message: str
) -> None:
    given(monkeypatch, *processes)
    with pytest.raises(TransportError, match=message):
        resolve_target(**options)  # type: ignore[arg-type]


def test_an_address_leads_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ONE, TWO)
    assert resolve_target(connect="localhost:1234").pid == 10
    assert resolve_target(connect="localhost:1234").qmp == "unix:/run/q"
    assert resolve_target(connect="elsewhere:1234").pid is None
    assert resolve_target(connect="localhost:1235").process is None
    found = resolve_target(connect="localhost:1234", qmp="/run/other")
    assert (found.qmp, found.qmp_is_asked_for) == ("/run/other", True)


def test_a_qmp_socket_leads_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ONE)
    found = resolve_target(qmp="/run/q")
    assert (found.gdb, found.qmp, found.pid, found.qmp_is_asked_for) == ("127.0.0.1:1234", "/run/q", 10, True)
    assert resolve_target(qmp="/run/unknown").pid is None


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("disconnected:unix:/run/g,server=on", "unix:/run/g"),
        ("unix:/run/g,server=on", "unix:/run/g"),
        ("disconnected:tcp:0.0.0.0:1234,server=on", "127.0.0.1:1234"),
        ("disconnected:tcp::::1234,server=on", None),
        ("tcp:10.0.0.1:99,server=on <-> 10.0.0.2:5", "10.0.0.1:99"),
        ("pty:/dev/pts/3", None),
        ("", None),
    ],
)
def test_names_of_character_devices(name: str, address: str | None) -> None:
    assert parse_chardev_name(name) == address


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("/run/q", "/run/q"),
        ("unix:/run/q", "/run/q"),
        ("localhost:4444", ("localhost", 4444)),
        ("tcp:[::1]:4444", ("::1", 4444)),
        ("unix:/run/q:1", "/run/q:1"),
        ("./q:1", "./q:1"),
    ],
)
def test_qmp_addresses(address: str, where: str | tuple[str, int]) -> None:
    assert socket_address(address) == where
