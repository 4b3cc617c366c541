"""A path becomes an open SQLite connection to a recording, or one clear sentence why not.

See https://www.sqlite.org/wal.html#read_only_databases for what a read-only database in WAL mode needs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from recording.errors import BadRecordingError, GuestprofError
from recording.schema import APPLICATION_ID, FORMAT_VERSION, VERSION_1, WITHOUT_CLOCKS

_SIDE_FILES = ("-wal", "-shm", "-journal")
_MAGIC = b"SQLite format 3\0"


def create(path: Path, *, overwrite: bool) -> sqlite3.Connection:
    """A connection to a new, empty database file. Raises GuestprofError where the file exists already or cannot be written."""
    try:
        if overwrite and not path.is_dir():
            path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        # A write-ahead log left by another recording of this name would be replayed into the new file.
        for suffix in _SIDE_FILES:
            side_path(path, suffix).unlink(missing_ok=True)
    except FileExistsError:
        remedy = "choose a file to write to" if path.is_dir() else "use --force to replace it"
        raise GuestprofError(f"{path} exists; {remedy}") from None
    except OSError as error:
        raise GuestprofError(f"cannot write {path}: {error.strerror}; choose another file with -o") from error
    return sqlite3.connect(path, isolation_level=None)


def side_path(path: Path, suffix: str) -> Path:
    """The file that SQLite keeps beside a database, such as ``-wal``."""
    return path.with_name(path.name + suffix)


def open_read_only(path: Path) -> tuple[sqlite3.Connection, tempfile.TemporaryDirectory[str] | None]:
    """A read-only connection, and the directory of the copy it reads, if it had to copy.

    A closed recording needs no write permission. One whose profiler was killed has a write-ahead log beside it; reading it needs
    a shared-memory file, which is made beside it or, where that is forbidden, beside a temporary copy.
    Raises BadRecordingError.
    """
    _check_header(path)
    uri = path.absolute().as_uri()
    try:
        return _checked(path, f"{uri}?mode=ro"), None
    except sqlite3.OperationalError:
        log = side_path(path, "-wal")
        if not log.exists() or log.stat().st_size == 0:
            return _checked_again(path, f"{uri}?mode=ro&immutable=1"), None
    copy = tempfile.TemporaryDirectory(prefix="guestprof-")
    try:
        target = Path(copy.name) / "recording"
        shutil.copyfile(path, target)
        shutil.copyfile(log, side_path(target, "-wal"))
        return _checked_again(path, f"{target.as_uri()}?mode=ro"), copy
    except OSError as error:
        copy.cleanup()
        raise BadRecordingError(f"cannot copy {path} to read it: {error.strerror}; make its directory writable") from error
    except BadRecordingError:
        copy.cleanup()
        raise


def open_to_change(path: Path) -> sqlite3.Connection:
    """A connection to a recording that is finished, by which it may be changed. Raises BadRecordingError."""
    _check_header(path)
    try:
        _checked(path, f"{path.absolute().as_uri()}?mode=ro").close()
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT_VERSION:
            connection.close()
            raise BadRecordingError(f"{path} is of an old format, which is only read; record again")
    except sqlite3.OperationalError as error:
        raise BadRecordingError(f"cannot change {path}: {error}; make the file and its directory writable") from error
    return connection


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise BadRecordingError(f"{path} does not exist; name a file that 'guestprof record' wrote") from None
    except OSError as error:
        raise BadRecordingError(f"cannot read {path}: {error.strerror}") from error
    if not magic:
        raise BadRecordingError(f"{path} is empty; record again")
    if magic != _MAGIC:
        raise BadRecordingError(f"{path} is no recording of guestprof; name a file that 'guestprof record' wrote")


def _checked_again(path: Path, uri: str) -> sqlite3.Connection:
    try:
        return _checked(path, uri)
    except sqlite3.OperationalError as error:
        raise BadRecordingError(f"cannot read {path}: {error}") from error


def _checked(path: Path, uri: str) -> sqlite3.Connection:
    """Connect and see that it is a recording of a format we know.

    Raises BadRecordingError, and OperationalError where SQLite cannot open it this way.
    """
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN")  # one snapshot for all reading, while a profiler may still be writing
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID:
            raise BadRecordingError(
                f"{path} is an SQLite file but no recording of guestprof; name one that 'guestprof record' wrote"
            )
        if version > FORMAT_VERSION:
            raise BadRecordingError(
                f"{path} is of format {version}, this guestprof reads up to {FORMAT_VERSION}; install a newer one"
            )
        if version < 1:
            raise BadRecordingError(f"{path} is damaged (format {version}); record again")
        if version == 1:
            for statement in VERSION_1.split(";"):  # executescript would end the transaction
                connection.execute(statement)
        if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'clocks'").fetchone()[0] == 0:
            connection.execute(WITHOUT_CLOCKS)
    except sqlite3.OperationalError:
        connection.close()
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter in the text of an error of SQLite
        connection.close()
        raise BadRecordingError(f"{path} is damaged ({error}); record again") from error
    except BadRecordingError:
        connection.close()
        raise
    return connection
