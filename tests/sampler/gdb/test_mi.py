from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recording.errors import GuestprofError
from sampler.gdb.mi import GdbProtocolError, Kind, MiReader, Record, quote

TRANSCRIPT = rb"""=thread-group-added,id="i1"
(gdb)
=thread-created,id="1",group-id="i1"
&"warning: Target-supplied registers are not supported by the current architecture\n"
~"_start () at avr.S:4\n"
*stopped,frame={addr="0x00000000",func="_start",args=[],file="avr.S",line="4",arch="avr:6"},thread-id="1",stopped-threads="all"
7^connected
(gdb)
8^done,stack=[frame={level="0",addr="0x0000001a",func="operator \"\"_x",line="10"},frame={level="1",addr="0x80",func="b\\c"}]
(gdb)
9^error,msg="Undefined MI command: list-thread-ids",code="undefined-command"
(gdb)
@"Hello from the target\r\n"
+download,{section=".text"}
10^running
*running,thread-id="all"
"""


def records(data: bytes) -> list[Record]:
    reader = MiReader()
    reader.feed(data)
    return list(iter(reader.next_record, None))


def test_a_transcript_is_told_apart() -> None:
    found = records(TRANSCRIPT)
    assert [(each.kind, each.token, each.message) for each in found] == [
        (Kind.NOTIFY, None, "thread-group-added"),
        (Kind.PROMPT, None, ""),
        (Kind.NOTIFY, None, "thread-created"),
        (Kind.LOG, None, ""),
        (Kind.CONSOLE, None, ""),
        (Kind.EXEC, None, "stopped"),
        (Kind.RESULT, 7, "connected"),
        (Kind.PROMPT, None, ""),
        (Kind.RESULT, 8, "done"),
        (Kind.PROMPT, None, ""),
        (Kind.RESULT, 9, "error"),
        (Kind.PROMPT, None, ""),
        (Kind.TARGET, None, ""),
        (Kind.STATUS, None, "download"),
        (Kind.RESULT, 10, "running"),
        (Kind.EXEC, None, "running"),
    ]
    assert found[5].results() == {
        "frame": {"addr": "0x00000000", "func": "_start", "args": [], "file": "avr.S", "line": "4", "arch": "avr:6"},
        "thread-id": "1",
        "stopped-threads": "all",
    }
    assert found[4].text() == "_start () at avr.S:4\n"
    assert found[6].results() == {}
    assert found[8].results() == {
        "stack": [
            {"level": "0", "addr": "0x0000001a", "func": 'operator ""_x', "line": "10"},
            {"level": "1", "addr": "0x80", "func": "b\\c"},
        ]
    }
    assert found[10].results()["msg"] == "Undefined MI command: list-thread-ids"
    assert found[12].text() == "Hello from the target\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_lines_come_in_parts_of_any_size(size: int) -> None:
    reader = MiReader()
    found = []
    for start in range(0, len(TRANSCRIPT), size):
        reader.feed(TRANSCRIPT[start : start + size])
        found += list(iter(reader.next_record, None))
    assert found == records(TRANSCRIPT)


def test_the_last_line_waits_for_its_end() -> None:
    reader = MiReader()
    reader.feed(b'1^done,value="a')
    assert reader.next_record() is None
    reader.feed(b'b"\r\n(gdb) \r')
    assert reader.next_record() == Record(Kind.RESULT, '1^done,value="ab"', 1, "done")
    assert reader.next_record() is None
    reader.feed(b"\n")
    assert reader.next_record() == Record(Kind.PROMPT, "(gdb) ")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (rb'~"caf\303\251 \"x\" \\ \t\n"', 'café "x" \\ \t\n'),
        # No UTF-8: kept as gdb escaped it.
        (rb'~"\377\376"', "\\377\\376"),
        # gdb prints other encodings raw where its host charset is one.
        (b'~"r\xe9sum\xe9"', "r\N{REPLACEMENT CHARACTER}sum\N{REPLACEMENT CHARACTER}"),
        ('~"naïve"'.encode(), "naïve"),
        (rb"plain words of a program", "plain words of a program"),
        (rb'~"no end', '~"no end'),
        (rb'12^done"', '12^done"'),
    ],
)
def test_text_of_any_encoding(line: bytes, text: str) -> None:
    assert [each.text() for each in records(line + b"\n")] == [text]


@pytest.mark.parametrize(
    "line",
    [
        "1^done,stack=[",
        '1^done,stack=[frame={level="0"}',
        '1^done,stack=[frame={level="0"]}',
        '1^done,stack=frame={level="0"}]',
        '1^done,name="no end',
        '1^done,name="wrong escape \\q"',
        '1^done,name="\\777"',
        "1^done,name=",
        "1^done,name",
        "1^done," + "a=[" * 1000 + "]" * 1000,
        "1^done," + 'a={a="' * 3,
    ],
)
def test_a_damaged_record_is_an_error(line: str) -> None:
    found = records(line.encode() + b"\n")
    assert len(found) == 1
    with pytest.raises(GdbProtocolError, match="gdb printed a damaged record"):
        found[0].results()


def test_a_line_without_end_is_an_error() -> None:
    reader = MiReader(max_line=1000)
    reader.feed(b"x" * 1000)
    assert reader.next_record() is None
    reader.feed(b"x")
    with pytest.raises(GdbProtocolError, match="gdb printed 1001 bytes without an end of line"):
        reader.next_record()


@given(st.binary(max_size=200) | st.text(alphabet='19^*=~@&,"\\[]{}ab3-\n', max_size=200).map(str.encode))
def test_whatever_comes_is_a_record_or_an_error(data: bytes) -> None:
    for each in records(data + b"\n"):
        for part in (each.results, each.text):
            with contextlib.suppress(GdbProtocolError):
                part()


def test_strings_are_quoted_and_stay_one_line() -> None:
    assert quote('a "b" \\c d') == '"a \\"b\\" \\\\c d"'
    with pytest.raises(GuestprofError, match="control character"):
        quote("a\nb")
