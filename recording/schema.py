"""The recording's file format: one SQLite database, its tables and how integers and names are kept in it.

Any SQLite tool can query a recording. Addresses are 64 bits unsigned in the guest and signed in SQLite, so
``printf('%x', pc)`` prints them as they are. ``callchains.frames`` is a JSON array of ``frames.id``, leaf first, for ``json_each``.

Keys of ``meta`` (values are JSON) which the views read; any other key is kept and shown as it is:

- ``requested_hz``: number, the sampling rate that was asked for
- ``architecture``, ``accelerator``, ``qemu_version``, ``kernel_release``: text about the machine
- ``vcpus``: number of vCPUs
- ``elf_files``: names of the files of ``--elf``, ``engine``: the gdb that made the samples; no other recordings have these

Frames of user code are in an image's own addresses (``frames.image``), so that all processes that run a file share them; ``start``
is where the frame's function begins, NULL where that is not known. ``tasks``,
``system_calls`` and ``contexts`` are kept once each; NULL in ``samples`` where a sample has none or it is not known.

``source_lines`` holds what debug information of the host says of addresses (``symbolize``, ``--vmlinux``): for each image and
``lookup_pc`` the functions there, ``depth`` 0 being the innermost and the highest the one that is not inlined; files without
it have no such tables.

``clocks`` has the guest's own clocks in the halts in which they could be read; recordings up to 0.1 do not have this table.

``captures``, ``unwinders``, ``unwinder_pieces`` and ``blobs`` hold what ``--raw`` keeps. An unwinder is what was known of the
kernel's code at one time: the first of a boot from when it was found, another from whenever it was read again and had changed.
A capture names the one that its callchain was made with (NULL: none), so unwinding it again gives the same callchain. Pieces are
``text`` (``part`` counts the separate ranges), ``orc_ip`` (at its run-time address) and ``orc`` (counted from 0), and those of what
the kernel had loaded and of debug information (``recording/loaded.py``); equal ones share a blob. ``kept_files`` and
``kept_file_pieces`` hold what is read of files of ``--elf``: some bytes of each at their offsets. Recordings of early versions have
neither.
"""

from __future__ import annotations

APPLICATION_ID = 0x47505246
"""``GPRF`` (https://www.sqlite.org/pragma.html#pragma_application_id)."""
FORMAT_VERSION = 2
"""``user_version``: raised whenever an older guestprof could not read the file rightly.

2 added tasks, contexts, system calls and the user part of stacks."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE halts (
    id INTEGER PRIMARY KEY, host_time_ns INTEGER NOT NULL, running_time_ns INTEGER NOT NULL,
    halted_ns INTEGER NOT NULL, lateness_ns INTEGER NOT NULL
);
CREATE TABLE clocks (
    halt INTEGER PRIMARY KEY REFERENCES halts, boot INTEGER NOT NULL, monotonic_ns INTEGER, printk_ns INTEGER
);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY, pc INTEGER NOT NULL, lookup_pc INTEGER NOT NULL, space TEXT NOT NULL, guess INTEGER NOT NULL,
    image INTEGER REFERENCES images, start INTEGER
);
CREATE TABLE callchains (id INTEGER PRIMARY KEY, end TEXT NOT NULL, frames TEXT NOT NULL, user_end TEXT);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, tgid INTEGER NOT NULL, comm TEXT NOT NULL, process TEXT NOT NULL,
    is_kernel_thread INTEGER NOT NULL, cgroup TEXT
);
CREATE TABLE contexts (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE system_calls (id INTEGER PRIMARY KEY, abi TEXT NOT NULL, number INTEGER NOT NULL, name TEXT);
CREATE TABLE samples (
    halt INTEGER NOT NULL REFERENCES halts, vcpu INTEGER NOT NULL, boot INTEGER NOT NULL, weight_ns INTEGER NOT NULL,
    callchain INTEGER NOT NULL REFERENCES callchains, task INTEGER REFERENCES tasks, context INTEGER REFERENCES contexts,
    system_call INTEGER REFERENCES system_calls, PRIMARY KEY (halt, vcpu)
) WITHOUT ROWID;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, boot INTEGER NOT NULL, build_id TEXT, symbols BLOB
);
CREATE TABLE image_ranges (
    image INTEGER NOT NULL REFERENCES images, position INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, running_time_ns INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE captures (
    halt INTEGER NOT NULL REFERENCES halts, vcpu INTEGER NOT NULL, unwinder INTEGER REFERENCES unwinders,
    registers BLOB NOT NULL, memory BLOB NOT NULL, PRIMARY KEY (halt, vcpu)
) WITHOUT ROWID;
CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE unwinders (
    id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, is_settled INTEGER NOT NULL,
    init_start INTEGER NOT NULL, init_end INTEGER NOT NULL, orc_version INTEGER
);
CREATE TABLE unwinder_pieces (
    unwinder INTEGER NOT NULL REFERENCES unwinders, name TEXT NOT NULL, part INTEGER NOT NULL, position INTEGER NOT NULL,
    address INTEGER NOT NULL, blob INTEGER NOT NULL REFERENCES blobs, PRIMARY KEY (unwinder, name, part, position)
) WITHOUT ROWID;
CREATE TABLE kept_files (
    image INTEGER PRIMARY KEY REFERENCES images, size INTEGER NOT NULL, bias INTEGER NOT NULL, root INTEGER
);
CREATE TABLE kept_file_pieces (
    image INTEGER NOT NULL REFERENCES kept_files, position INTEGER NOT NULL, blob INTEGER NOT NULL REFERENCES blobs,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
"""

SOURCE_TABLES = (
    "CREATE TABLE IF NOT EXISTS source_files (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE)",
    """CREATE TABLE IF NOT EXISTS source_lines (
        image INTEGER NOT NULL REFERENCES images, address INTEGER NOT NULL, depth INTEGER NOT NULL, name TEXT,
        file INTEGER REFERENCES source_files, line INTEGER, PRIMARY KEY (image, address, depth)
    ) WITHOUT ROWID""",
)
"""What ``recording/sources.py`` adds to a recording."""

VERSION_1 = """
CREATE TEMP VIEW frames AS SELECT id, pc, lookup_pc, space, guess, NULL AS image, NULL AS start FROM main.frames;
CREATE TEMP VIEW callchains AS SELECT id, "end", frames, NULL AS user_end FROM main.callchains;
CREATE TEMP VIEW tasks AS
    SELECT 0 AS id, 0 AS pid, 0 AS tgid, '' AS comm, '' AS process, 0 AS is_kernel_thread, NULL AS cgroup WHERE FALSE;
CREATE TEMP VIEW contexts AS SELECT 0 AS id, '' AS name WHERE FALSE;
CREATE TEMP VIEW system_calls AS SELECT 0 AS id, '' AS abi, 0 AS number, NULL AS name WHERE FALSE;
CREATE TEMP VIEW samples AS
    SELECT halt, vcpu, boot, weight_ns, callchain, NULL AS task, NULL AS context, NULL AS system_call FROM main.samples;
"""
"""Makes a file of format 1 look like one of today to the connection that reads it: names in ``temp`` hide those in ``main``."""

WITHOUT_CLOCKS = "CREATE TEMP VIEW clocks AS SELECT 0 AS halt, 0 AS boot, NULL AS monotonic_ns, NULL AS printk_ns WHERE FALSE"
"""The same for a file without that table."""

RETIMED_TABLES = tuple(
    [
        statement.replace("CREATE TABLE", "CREATE TEMP TABLE", 1)
        for statement in TABLES.split(";")
        if statement.split("(")[0].split()[-1:] in (["halts"], ["samples"], ["events"])
    ]
)
"""What hides the tables with times, for a connection that tells them by another clock."""

WRITES = {
    "meta": "INSERT OR REPLACE INTO meta VALUES (?, ?)",
    "halts": "INSERT INTO halts VALUES (?, ?, ?, ?, ?)",
    "clocks": "INSERT INTO clocks VALUES (?, ?, ?, ?)",
    "frames": "INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?)",
    "callchains": "INSERT INTO callchains VALUES (?, ?, ?, ?)",
    "tasks": "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
    "contexts": "INSERT INTO contexts VALUES (?, ?)",
    "system_calls": "INSERT INTO system_calls VALUES (?, ?, ?, ?)",
    "samples": "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "images": "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
    "image_updates": (
        "UPDATE images SET name = coalesce(?, name), build_id = coalesce(?, build_id), symbols = coalesce(?, symbols) WHERE id = ?"
    ),
    "image_ranges": "INSERT INTO image_ranges VALUES (?, ?, ?, ?)",
    "events": "INSERT INTO events VALUES (?, ?, ?, ?)",
    "captures": "INSERT OR REPLACE INTO captures VALUES (?, ?, ?, ?, ?)",
    "blobs": "INSERT INTO blobs VALUES (?, ?)",
    "unwinders": "INSERT INTO unwinders VALUES (?, ?, ?, ?, ?, ?)",
    "unwinder_pieces": "INSERT INTO unwinder_pieces VALUES (?, ?, ?, ?, ?, ?)",
    "kept_files": "INSERT INTO kept_files VALUES (?, ?, ?, ?)",
    "kept_file_pieces": "INSERT INTO kept_file_pieces VALUES (?, ?, ?)",
}
"""How a row of each table is written, tables that others refer to first."""


def to_signed(value: int) -> int:
    """An unsigned 64-bit address as SQLite keeps it."""
    return value - (1 << 64) if value >> 63 else value


def to_unsigned(value: int) -> int:
    """The address that ``to_signed`` kept."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def storable_text(text: str) -> str:
    """Text that SQLite can keep: guests may name things with bytes that are no UTF-8, which Python keeps as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
