"""The conditions that figures hold under."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pqd.measure.cpu import cores, cpu_name, isa
from pqd.measure.peak import int8_peak_gops
from pqd.measure.quiet import one_at_a_time

PACKAGES = ("pqd", "torch", "timm", "onnx", "onnxruntime", "openvino", "numpy")


def machine() -> dict[str, Any]:
    """The machine and the installed versions, without the cost of measuring anything.

    Returns:
        `cpu` (model name), `isa` (see `pqd.measure.cpu.ISA`), `cores` (physical ones this process
        may use), `os`, `python`, `versions` (of the installed ones among `PACKAGES`).
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
    """Everything of `machine`, the commit and the machine's measured INT8 peak (see its source).

    Returns:
        `machine()` with `commit` (hash of the checkout that pqd runs from, with `-dirty` after it
        when tracked files differ; None outside a checkout) and `int8_peak_gops` (one thread).
    """
    return machine() | {"commit": commit(), "int8_peak_gops": _int8_peak()}


@cache
def _int8_peak() -> float:
    with one_at_a_time():
        return int8_peak_gops(1)


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
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
