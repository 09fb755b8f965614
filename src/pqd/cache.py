"""A content-addressed store of finished work, shared by all runs.

An entry is a folder named by the hash of everything that influences its content. It appears in
one rename, complete, with the checksums of its files; what is found damaged is made anew.

Two jobs that want the same entry meet at a lock: one makes it, the other waits and reads it. The
lock is `flock` (through `filelock`), which the kernel drops when its holder dies, SIGKILL
included. On NFS, Linux turns flock into a byte-range lock held by the server (v3 with lockd since
2.6.12, v4 by itself), so it excludes jobs on other machines too, and the server drops it when the
client's lease runs out.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pqd.errors import UserError

MANIFEST = "manifest.json"


def key_of(identity: dict[str, Any]) -> str:
    """Returns 16 hex digits that stand for `identity`, a JSON-serializable dict."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished entry."""

    key: str
    folder: Path
    label: str
    made: datetime
    files: tuple[Path, ...]
    bytes: int
    cached: bool  # found rather than made by this call


class Cache:
    """Entries below one folder: `<folder>/<key>/`, with locks and checkpoints beside them."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        """Uses `folder`, created when first written to; `say` gets a line when all is not well."""
        self.folder = folder
        self.say = say

    def checkpoint(self, key: str) -> Path:
        """Returns where unfinished work on an entry is kept; removed when the entry is stored."""
        return self.folder / f"{key}.checkpoint"

    def get(self, key: str, label: str, make: Callable[[Path], None]) -> Entry:
        """Returns the entry `key`, calling `make(empty_folder)` to fill it if it is not there.

        Raises:
            UserError: the cache's folder cannot be written.
        """
        from filelock import FileLock, Timeout

        if (entry := self._read(key)) is not None:
            return entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache.dir={self.folder} cannot be made: {error.strerror}") from None
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"{label}: another job is at it, waiting for its result")
            lock.acquire()
        try:
            # Whoever held the lock may have made it meanwhile.
            return self._read(key) or self._make(key, label, make)
        finally:
            lock.release()

    def entries(self) -> Iterator[Entry]:
        """Yields the entries that are there and sound, oldest first."""
        found = (self._read(path.parent.name) for path in self.folder.glob(f"*/{MANIFEST}"))
        yield from sorted((e for e in found if e is not None), key=lambda entry: entry.made)

    def remove(self, entry: Entry) -> None:
        """Deletes an entry, its lock and its checkpoint."""
        shutil.rmtree(entry.folder)
        self.checkpoint(entry.key).unlink(missing_ok=True)
        (self.folder / f"{entry.key}.lock").unlink(missing_ok=True)

    def _make(self, key: str, label: str, make: Callable[[Path], None]) -> Entry:
        temporary = self.folder / f"{key}.partial"
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed job
        temporary.mkdir()
        make(temporary)
        files = sorted(p for p in temporary.iterdir() if p.is_file())
        manifest = {
            "label": label,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {p.name: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for p in files},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*files, temporary / MANIFEST):
            _sync(path)
        final = self.folder / key
        shutil.rmtree(final, ignore_errors=True)  # a damaged one
        os.rename(temporary, final)
        self.checkpoint(key).unlink(missing_ok=True)
        return self._entry(key, manifest, cached=False)

    def _read(self, key: str) -> Entry | None:
        folder = self.folder / key
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            sound = all(
                (folder / name).stat().st_size == file["bytes"]
                and file_digest(folder / name) == file["sha256"]
                for name, file in manifest["files"].items()
            )
        except FileNotFoundError:
            sound = not folder.exists()
            if sound:
                return None
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            self.say(f"cache entry {folder} is damaged; it is made again")
            return None
        return self._entry(key, manifest, cached=True)

    def _entry(self, key: str, manifest: dict[str, Any], *, cached: bool) -> Entry:
        return Entry(
            key=key,
            folder=self.folder / key,
            label=manifest["label"],
            made=datetime.fromisoformat(manifest["made"]),
            files=tuple(self.folder / key / name for name in manifest["files"]),
            bytes=sum(file["bytes"] for file in manifest["files"].values()),
            cached=cached,
        )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
