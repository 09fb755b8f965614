"""Decoded images on disk, so that tens of thousands of files are decoded once and not per run."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pqd.errors import one_line
from pqd.files import write_tensors

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the decoded pixels change


def folder() -> Path:
    """Where decoded images are kept: `pqd` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqd"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "pqd"


def named(name: str, files: Sequence[Path], settings: object) -> str:
    """What the decoded images of these files are called: `name` and a hash of all they depend on.

    Args:
        name: for the people who find it.
        files: what is decoded; their paths, sizes and modification times count.
        settings: whatever else the result depends on; its `repr` counts.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((FORMAT, settings, stats)).encode()).hexdigest()[:16]
    return f"{name}-{key}"


def decoded(
    name: str, files: Sequence[Path], settings: object, decode: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `decode` returns, from the cache where these very files were decoded before.

    The cache saves time and is never needed: where it cannot be read or written, a warning says so.

    Args:
        name: see `named`, as for `files` and `settings`.
        files: see there.
        settings: see there.
        decode: does the work.
    """
    path = folder() / f"{named(name, files, settings)}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, one_line(error))
    tensors = decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors)
    except (OSError, SafetensorError) as error:
        log.warning("decoded images are not kept for the next run: %s", one_line(error))
    return tensors
