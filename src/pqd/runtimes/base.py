"""What a runtime is, and the registry of those that there are.

Nothing here imports a runtime's package: the configuration is checked against the registry at
start-up, long before anything is measured.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module, metadata, util
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from pqd.errors import UserError, choices
from pqd.scheme import Scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Array: TypeAlias = "NDArray[np.float32]"


class Session(Protocol):
    """One model on a fixed number of threads, ready to run."""

    def bind(self, images: Array) -> Callable[[], object]:
        """Returns a call that runs the network on `images` [B, C, H, W] and nothing else.

        No copy or conversion is around it, so that a latency is the runtime's and not Python's.
        """

    def __call__(self, images: Array) -> Array:
        """Returns the logits [B, K] of `images` [B, C, H, W]."""


class Runtime(ABC):
    """One way to run a network; a file of `pqd.runtimes` defines and registers one.

    Attributes:
        name: as in `runtime.names` and in results.
        title: its proper name, for tables.
        package: what pip installs and Python imports.
        runs: what it opens: the ONNX file, or the network itself (an `nn.Module`).
        scheme: how it wants networks quantized, as a `target`; None where it runs none in INT8.
        usual: whether it is measured where nothing is said.
        reopens: whether every block of a measurement opens a session of its own; not where
            opening takes long.
    """

    name: str
    title: str
    package: str
    runs: Literal["onnx", "network"] = "onnx"
    scheme: Scheme | None = None
    usual: bool = False
    reopens: bool = True

    def unavailable(self) -> str | None:
        """Returns why the runtime cannot be used here, in one line; None if it can."""
        if util.find_spec(self.package) is None:
            return f"runtime {self.name} is not installed (pip install {self.package})"
        return None

    def version(self) -> str:
        """Returns the installed version."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:  # installed under another name: onnxruntime-gpu
            return str(import_module(self.package).__version__)

    @abstractmethod
    def open(self, model: Any, threads: int) -> Session:
        """Opens what the runtime runs (see `runs`) on `threads` threads."""

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Returns the block within which sessions of `count` threads are opened and run."""
        return nullcontext()

    def float_compute_nodes(self, model: Any) -> int | None:
        """Counts the nodes of a model (see `runs`) that the runtime computes in float.

        Returns:
            The count; None where the runtime does not tell.
        """
        return None


RUNTIMES: dict[str, Runtime] = {}  # by name


def register(runtime: Runtime) -> None:
    """Makes a runtime known by its name, replacing one that has the same."""
    RUNTIMES[runtime.name] = runtime


def get(name: str) -> Runtime:
    """Returns the runtime of a name.

    Raises:
        UserError: there is none.
    """
    if name not in RUNTIMES:
        raise choices("runtime", name, RUNTIMES)
    return RUNTIMES[name]


def usable(name: str) -> Runtime:
    """Returns the runtime of a name, to be used here.

    Raises:
        UserError: there is none, or it cannot be used here.
    """
    runtime = get(name)
    if reason := runtime.unavailable():
        raise UserError(reason)
    return runtime


def available(names: Sequence[str]) -> list[str]:
    """Returns those of the names that can be used here; the log says why others cannot."""
    reasons = {name: get(name).unavailable() for name in names}
    for reason in filter(None, reasons.values()):
        log.warning("%s; left out", reason)
    return [name for name, reason in reasons.items() if reason is None]
