"""A build ID → a file with debug information from the servers that ``DEBUGINFOD_URLS`` names; without that nothing is asked of
anybody.

Protocol and variables are those of elfutils (debuginfod(8), debuginfod-find(1)): ``GET URL/buildid/ID/debuginfo``, URLs
separated by blanks, DEBUGINFOD_TIMEOUT in seconds without progress. Files are kept where the other clients keep them, so that
gdb and we share them.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

_BUILD_ID = re.compile(r"[0-9a-f]{8,64}")
_TIMEOUT_S = 90.0
_CHUNK = 1 << 20
_MAX_FILE = 1 << 33


class Debuginfod:
    """The servers of one environment."""

    def __init__(
        self, environment: Mapping[str, str], tell: Callable[[str], None] | None = None, *, may_fetch: bool = True
    ) -> None:
        """``tell`` takes a sentence about what could not be fetched, and what is being fetched.

        may_fetch: ask the servers; else there is only what was fetched before.
        """
        self._urls = [url for url in environment.get("DEBUGINFOD_URLS", "").split() if urlsplit(url).scheme in {"http", "https"}]
        home = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        self._cache = Path(environment.get("DEBUGINFOD_CACHE_PATH") or Path(home) / "debuginfod_client")
        try:
            self._timeout_s = float(environment.get("DEBUGINFOD_TIMEOUT") or _TIMEOUT_S)
        except ValueError:
            self._timeout_s = _TIMEOUT_S
        self._tell = tell or (lambda _line: None)
        self._may_fetch = may_fetch
        self._absent: set[str] = set()

    def find(self, build_id: str) -> Path | None:
        """The file, fetched if it was not here yet; None where there is no server, or none has it. Never raises."""
        if not self._urls or not _BUILD_ID.fullmatch(build_id) or build_id in self._absent:
            return None
        path = self._cache / build_id / "debuginfo"
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size:
                return path
        for url in self._urls if self._may_fetch else ():
            if self._fetch(f"{url.rstrip('/')}/buildid/{build_id}/debuginfo", path):
                return path
        self._absent.add(build_id)
        return None

    def _fetch(self, url: str, path: Path) -> bool:
        """Whether the whole file is there now."""
        try:
            with urllib.request.urlopen(url, timeout=self._timeout_s) as answer:  # noqa: S310  (http and https alone, see above)
                self._tell(f"fetching {url}")
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
                    try:
                        expected = answer.headers.get("Content-Length")
                        size = 0
                        while data := answer.read(_CHUNK):
                            size += len(data)
                            if size > _MAX_FILE:
                                raise OSError(f"more than {_MAX_FILE} bytes")
                            file.write(data)
                        if expected is not None and expected.isdecimal() and size != int(expected):
                            raise OSError(f"{size} of {expected} bytes came")
                        file.flush()
                        Path(file.name).replace(path)
                    except BaseException:
                        Path(file.name).unlink(missing_ok=True)
                        raise
        except urllib.error.HTTPError as error:
            if error.code != 404:
                self._tell(f"{url}: {error}; see DEBUGINFOD_URLS")
            return False
        except (OSError, ValueError) as error:
            self._tell(f"{url}: {error}; see DEBUGINFOD_URLS")
            return False
        return True
