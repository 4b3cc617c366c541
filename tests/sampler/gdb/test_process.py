"""gdb as a child process: what it answers, and what becomes of one that ends or hangs. The gdb here is a script of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from recording.errors import MissingDependencyError
from sampler.gdb.process import Gdb, GdbCommandError, GdbFailedError

_HEAD = f"""#!{sys.executable}
import sys, time
def say(text):
    sys.stdout.write(text + "\\n"); sys.stdout.flush()
say('=thread-group-added,id="i1"'); say("(gdb) ")
for line in sys.stdin:
    token = line[: len(line) - len(line.lstrip("0123456789"))]
    command = line[len(token):].strip()
    if command == "quit":
        sys.stderr.write("Fatal signal: \\xff\\n"); sys.exit(3)
    if command == "hang":
        time.sleep(60)
    if command == "flood":
        while True:
            say('=library-loaded,id="x"')
    if command == "late":
        say("7^done,late=\\"an answer to somebody else\\""); say("(gdb) ")
        say('*stopped,reason="signal-received",signal-name="SIGINT"')
    if command == "talk":
        say('~"a line\\\\n"'); say('&"to the log\\\\n"'); say('~"and another"')
    if command == "bad":
        say(token + '^error,msg="No symbol table is loaded.",code="undefined-command"')
    else:
        say(token + '^done,command="' + command + '"')
    say("(gdb) ")
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "fake-gdb"
    path.write_text(_HEAD)
    path.chmod(0o755)
    return str(path)


def test_answers_come_in_the_order_of_their_commands(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        answers = gdb.run(["one", "talk", "bad", "two"])
        assert [answer.result.message for answer in answers] == ["done", "done", "error", "done"]
        assert [answer.result.token for answer in answers] == [1, 2, 3, 4]
        assert answers[1].console() == "a line\nand another"
        assert [answer.result.results().get("command") for answer in answers] == ["one", "talk", None, "two"]
        with pytest.raises(GdbCommandError, match=r"gdb refuses 'bad': No symbol table is loaded\."):
            answers[2].require()
        assert gdb.ask("three").result.token == 5


def test_answers_to_others_and_events_are_told_apart(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        assert gdb.ask("late").result.results() == {"command": "late"}
        assert gdb.await_event("stopped").results()["signal-name"] == "SIGINT"
        assert not gdb.events


def test_a_gdb_that_ends_is_an_error(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        with pytest.raises(GdbFailedError, match=r"fake-gdb ended with 3; the guest runs on \(it printed: 'Fatal signal: "):
            gdb.ask("quit")
        with pytest.raises(GdbFailedError, match="ended with 3"):
            gdb.ask("one")


def test_a_gdb_that_is_killed_is_an_error(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        psutil.Process(gdb.pid).kill()
        with pytest.raises(GdbFailedError, match="was killed by signal 9; the guest runs on"):
            gdb.run(["one", "two"])


@pytest.mark.parametrize("command", ["hang", "flood"])
def test_a_gdb_that_hangs_is_an_error_and_is_ended(program: str, command: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        gdb.timeout_s = 0.3
        process = psutil.Process(gdb.pid)
        with pytest.raises(GdbFailedError, match=rf"fake-gdb hangs: 0\.3 s were not enough for its answer to '{command}'; give it"):
            gdb.ask(command)
    assert not process.is_running()


def test_an_event_that_does_not_come_is_an_error(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        gdb.timeout_s = 0.2
        with pytest.raises(GdbFailedError, match="for the target to have stopped"):
            gdb.await_event("stopped")


def test_serving_waits_no_longer_than_asked(program: str) -> None:
    with Gdb(program, timeout_s=20) as gdb:
        gdb.events.clear()
        gdb.serve(0.01)
        assert not gdb.events


@pytest.mark.parametrize(("content", "message"), [("import time; time.sleep(60)", "hangs: 0.3 s were not enough for its start")])
def test_a_program_that_is_no_gdb(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "no-gdb"
    path.write_text(f"#!{sys.executable}\n{content}\n")
    path.chmod(0o755)
    with pytest.raises(GdbFailedError, match=message):
        Gdb(str(path), timeout_s=0.3)
    with pytest.raises(MissingDependencyError, match="cannot be started"):
        Gdb(str(tmp_path / "absent"), timeout_s=1)
    path.chmod(0o644)
    with pytest.raises(MissingDependencyError, match="Permission denied"):
        Gdb(str(path), timeout_s=1)


def test_the_users_own_settings_stay_out(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUGINFOD_URLS", "https://debuginfod.example")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with Gdb(program, timeout_s=20) as gdb:
        process = psutil.Process(gdb.pid)
        environment, command = process.environ(), process.cmdline()
        assert "DEBUGINFOD_URLS" not in environment
        assert environment["LC_ALL"] == "C"
        assert command[2:] == ["-nx", "-quiet", "--interpreter=mi2", "-iex", "set auto-load off", "-iex", "set confirm off"]
