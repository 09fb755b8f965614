"""Files that are whole or not there: written beside their place, synced, and renamed into it."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor


DEVICES = Path("/dev")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends without an error.

    Several processes may replace one file at once: readers see one of the contents, whole. A
    device or a pipe is not replaced but written to.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; it names `path`, which stays
            as it was.
    """
    if path.parent == DEVICES or (path.exists() and not (path.is_file() or path.is_dir())):
        with path.open("wb") as file:
            yield file
        return
    name = os.fsencode(path.name)[:100].decode(errors="ignore")  # its length is limited in bytes
    temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename or temporary) == str(temporary):
            error.filename = str(path)  # of a full disk the system names no file
        raise


def write(path: Path, content: bytes | str) -> None:
    """Replaces a file (see `replacing`); text is written as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file (see `replacing`)."""
    write(path, json.dumps(content, indent=1))


def write_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Replaces a safetensors file (see `replacing`), without a copy of the tensors in memory.

    Raises:
        SafetensorError: as `replacing` raises an `OSError`.
    """
    from safetensors.torch import save_file

    with replacing(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        file.close()  # Windows replaces no open file
        save_file(tensors, file.name)  # puts a file there that is not synced, and its owner's alone
        os.chmod(file.name, S_IMODE(mode))
        sync(Path(file.name))


def sync(path: Path) -> None:
    """Has a file written to the disk."""
    with path.open("r+b") as file:  # Windows syncs none that is read only
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
