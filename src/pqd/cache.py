"""A content-addressed store of finished work, shared by all runs.

An entry is a folder named by the hash of everything that influences its content. It appears in
one rename, complete, with the checksums of its files; what is found damaged is made anew.

Two jobs that want the same entry meet at a lock: one makes it, the other waits and reads it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pqd import files
from pqd.errors import UserError
from pqd.locks import held

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


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
    files: tuple[Path, ...]
    cached: bool  # found rather than made by this call


@dataclass(frozen=True)
class Item:
    """What the cache keeps under one key: an entry, or what an unfinished one left behind."""

    key: str
    label: str
    used: datetime  # when it was last written or read
    bytes: int


class Cache:
    """Entries below one folder: `<folder>/<key>/`, with locks and checkpoints beside them."""

    def __init__(self, folder: Path) -> None:
        """Uses `folder`, created when first written to."""
        self.folder = folder

    def checkpoint(self, key: str) -> Path:
        """Returns where unfinished work on an entry is kept; removed when the entry is stored."""
        return self.folder / f"{key}.checkpoint"

    def get(self, key: str, label: str, make: Callable[[Path], None], name: str = "") -> Entry:
        """Returns the entry `key`, calling `make(empty_folder)` to fill it if it is not there.

        Args:
            key: what the entry is.
            label: for people, of whoever makes it.
            make: fills an empty folder.
            name: which job wants it, as `pqd.identity.wanted` tells without a look at the images.

        Raises:
            UserError: the cache's folder cannot be written, or not be locked.
            OSError: the disk is full, say; what was made so far is removed, and named.
        """
        if (entry := self._read(key)) is not None:
            return entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache.dir={self.folder} cannot be made: {error.strerror}") from None
        waiting = "%s: another job is at it, waiting for its result"
        with held(self._lock(key), lambda: log.warning(waiting, label)):
            # Whoever held the lock may have made the entry meanwhile. On NFS, opening the folder
            # makes this machine forget that the entry was not there a moment ago.
            os.listdir(self.folder)
            return self._read(key) or self._make(key, {"label": label, "name": name}, make)

    def names(self) -> set[str]:
        """Returns the names of all entries. Checksums are not checked."""
        found = set()
        for path in self.folder.glob(f"*/{MANIFEST}"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or just pruned
                found.add(str(files.read_json(path)["name"]))
        return found

    def items(self) -> list[Item]:
        """Returns all that is there, what was used longest ago first. Checksums are not checked."""
        names = {path.name.partition(".")[0] for path in self.folder.glob("*")}
        # Nothing else is the cache's, whatever folder it is told to prune.
        found = (self._item(name) for name in names if re.fullmatch("[0-9a-f]{16}", name))
        return sorted((i for i in found if i is not None), key=lambda item: (item.used, item.key))

    def prune(self, before: datetime) -> Iterator[Item]:
        """Deletes what was not used since `before`, and yields it; what a job is at stays.

        Locks stay too: they are empty, and to remove one that a job on another machine is just
        opening would let two jobs in.
        """
        for key in [item.key for item in self.items() if item.used < before]:
            with suppress(TimeoutError), held(self._lock(key), None):
                item = self._item(key)
                if item is None or item.used >= before:  # a job was at it meanwhile
                    continue
                for path in self._paths(key):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                yield item

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _paths(self, key: str) -> list[Path]:
        """Everything there is under a key but its lock."""
        names = (key, f"{key}.partial", f"{key}.checkpoint", f"{key}.checkpoint.part")
        return [path for name in names if (path := self.folder / name).exists()]

    def _item(self, key: str) -> Item | None:
        entry, paths = self.folder / key, self._paths(key)
        if not paths:
            return None
        label = "unfinished"
        if entry in paths:
            try:
                label = str(files.read_json(entry / MANIFEST)["label"])
            except (OSError, ValueError, KeyError, TypeError):
                label = "damaged"
        try:
            stats = [file.stat() for path in paths for file in (path, *path.rglob("*"))]
        except FileNotFoundError:  # a job is at it
            return None
        used = datetime.fromtimestamp(max(stat.st_mtime for stat in stats), UTC)
        return Item(key, label, used, sum(s.st_size for s in stats if S_ISREG(s.st_mode)))

    def _make(self, key: str, told: dict[str, str], make: Callable[[Path], None]) -> Entry:
        temporary, final = self.folder / f"{key}.partial", self.folder / key
        if final.exists():  # and yet it could not be read
            log.warning("cache entry %s is damaged; it is made again", final)
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed job
        with _removed_on_error(temporary):
            temporary.mkdir()
            make(temporary)
            made = sorted(p for p in temporary.iterdir() if p.is_file())
            facts = {p.name: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for p in made}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            manifest: dict[str, Any] = told | {"made": now, "files": facts}
            for path in made:
                files.sync(path)
            files.write_json(temporary / MANIFEST, manifest)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
        self.checkpoint(key).unlink(missing_ok=True)
        return self._entry(key, manifest, cached=False)

    def _read(self, key: str) -> Entry | None:
        """Returns a sound entry, from now on used just now; None if there is none."""
        folder = self.folder / key
        try:
            manifest = files.read_json(folder / MANIFEST)
            sound = all(
                (folder / name).stat().st_size == file["bytes"]
                and file_digest(folder / name) == file["sha256"]
                for name, file in manifest["files"].items()
            )
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        if not sound:
            return None
        with suppress(OSError):  # another user's
            os.utime(folder / MANIFEST)
        return self._entry(key, manifest, cached=True)

    def _entry(self, key: str, manifest: dict[str, Any], *, cached: bool) -> Entry:
        found = tuple(self.folder / key / name for name in manifest["files"])
        return Entry(key, self.folder / key, found, cached)


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    """Removes what was made before an error: with it goes what filled a disk."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)
        if not isinstance(error, OSError) and (
            match := re.search(r"\(os error (\d+)\)", str(error))
        ):
            code = int(match[1])  # so says what is written in Rust, e.g. safetensors
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise
