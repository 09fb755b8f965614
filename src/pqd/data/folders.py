"""The folders that images are read from: the root, and the image files of every class."""

import logging
import os
from collections import Counter
from errno import ELOOP, ENOENT
from functools import cache
from pathlib import Path
from stat import S_ISREG

from pqd.config import DatasetConfig
from pqd.errors import UserError, one_line

log = logging.getLogger(__name__)


def root_of(cfg: DatasetConfig, holds: str) -> Path:
    """Returns `cfg.root` as an absolute path: a folder that can be listed, or nothing there.

    Args:
        cfg: the data set.
        holds: what the folder is expected to hold, for the error.

    Raises:
        UserError: it is not set, is no folder, or cannot be listed.
    """
    hint = f"give the folder that holds {holds}, e.g. dataset.root=/path/to/images"
    if not cfg.root:
        raise UserError(f"dataset.root is not set; {hint}")
    try:
        root = Path(cfg.root).expanduser().absolute()
        os.scandir(root).close()
    except FileNotFoundError:
        return root
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"dataset.root={shown(Path(cfg.root))} cannot be read ({reason}); {hint}"
        ) from error
    return root


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Lists the image files of every class, at any depth below `folder/<class>`.

    Links are followed, but to each folder once and never back to one that holds the class. What is
    passed over is counted in one line of the log.

    Returns:
        The files by class name, both sorted.

    Raises:
        UserError: the folder is missing, a folder cannot be read, a class has no image file, or
            its name cannot be printed.
    """
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "is missing"
        raise UserError(f"{folder} {problem}; images are read from {folder}/<class>/*")
    passed: Counter[str] = Counter()
    classes = {}
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in found:
        if name.startswith("."):
            passed["hidden"] += 1
        elif not is_folder:
            image = Path(name).suffix.lower() in _suffixes()
            passed["images in no class folder" if image else "other files"] += 1
        elif not name.isprintable():
            raise UserError(
                f"the class folder {shown(folder / name)} has a name that cannot be "
                "printed; rename it"
            )
        else:
            classes[name] = _images(folder / name, passed)
    for name, files in classes.items():
        if not files:
            raise UserError(f"{folder / name} holds no image file (.png, .jpg, .webp, ...)")
    if counts := ", ".join(f"{what} ({count})" for what, count in sorted((+passed).items())):
        log.info("passed over in %s: %s", folder, counts)
    return classes


def _images(top: Path, passed: Counter[str]) -> list[Path]:
    """The image files below `top`, sorted; counts what is passed over."""
    images: list[Path] = []
    seen = {_identity(outer) for outer in (*top.parents, *top.resolve().parents)}
    for here, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        if (identity := _identity(here)) in seen:
            passed["links to folders met before"] += 1
            folders.clear()
            continue
        seen.add(identity)
        before = len(images)
        for name in files:
            path = Path(here, name)
            if name.startswith("."):
                passed["hidden"] += 1
            elif path.suffix.lower() not in _suffixes():
                passed["other files"] += 1
            elif not _is_file(path):
                passed["broken links or no regular files"] += 1
            else:
                images.append(path)
        visible = [name for name in folders if not name.startswith(".")]
        passed["hidden"] += len(folders) - len(visible)
        passed["folders without images"] += len(images) == before and not visible
        folders[:] = sorted(visible)
    return sorted(images)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    raise UserError(f"{one_line(error)}: this folder's images cannot be read") from error


def _is_file(path: Path) -> bool:
    try:
        return S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in (ENOENT, ELOOP):
            return False
        raise


@cache
def _suffixes() -> set[str]:
    """The endings of the files that Pillow reads, in lower case."""
    from PIL import Image

    Image.init()
    return {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def shown(path: Path) -> str:
    """A path for people: escaped where it holds line breaks or bytes that are no text."""
    return str(path) if str(path).isprintable() else repr(str(path))
