"""The conditions that figures hold under."""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pqd.measure.cpu import cores, cpu_name, isa
from pqd.runtimes import RUNTIMES

PACKAGES = ("pqd", "torch", "timm", "onnx", "numpy")  # and those of the runtimes


def machine() -> dict[str, Any]:
    """The machine and the installed versions, without the cost of measuring anything.

    Returns:
        `cpu` (model name), `isa` (see `pqd.measure.cpu.ISA`), `cores` (physical ones this process
        may use), `os`, `python`, `versions` (of what is installed of `PACKAGES` and of
        the runtimes).
    """
    return {
        "cpu": cpu_name(),
        "isa": isa(),
        "cores": len(cores()),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def provenance() -> dict[str, Any]:
    """Everything of `machine`, and the commit; nothing is measured.

    Returns:
        `machine()` with `commit` (hash of the checkout that pqd runs from, with `-dirty` after it
        when tracked files differ; None outside a checkout).
    """
    return machine() | {"commit": commit()}


def commit() -> str | None:
    """The commit of the checkout that pqd runs from; None if it runs from an installation."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty"]
    command += ["--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    for runtime in RUNTIMES.values():
        if runtime.unavailable() is None:
            installed[runtime.package] = runtime.version()
    return installed
