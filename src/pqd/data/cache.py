"""Decoded images on disk, so that tens of thousands of files are decoded once and not per run."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the decoded pixels change


def folder() -> Path:
    """Where decoded images are kept: `pqd` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqd"


def decoded(
    name: str, files: Sequence[Path], settings: object, decode: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `decode` returns, from the cache where these very files were decoded before.

    Args:
        name: of the cache file, for the people who find it.
        files: what is decoded; their paths, sizes and modification times are the key.
        settings: whatever else the result depends on; its `repr` is part of the key.
        decode: does the work.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((FORMAT, settings, stats)).encode()).hexdigest()[:16]
    path = folder() / f"{name}-{key}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
    tensors = decode()
    try:
        _write(tensors, path)
    except (OSError, SafetensorError) as error:
        log.warning("decoded images are not kept for the next run: %s", error)
    return tensors


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes at once or not at all: others read this folder at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, part)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
