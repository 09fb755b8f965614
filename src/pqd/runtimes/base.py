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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from pqd.errors import UserError, choices
from pqd.scheme import Scheme

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Array: TypeAlias = "NDArray[np.float32 | np.uint8]"


class Session(Protocol):
    """One model on a fixed number of threads, ready to run."""

    def bind(self, images: Array) -> Callable[[], object]:
        """Returns a call that runs the network on `images` [B, C, H, W] and nothing else.

        No copy or conversion is around it, so that a latency is the runtime's and not Python's.
        """

    def __call__(self, images: Array) -> Array:
        """Returns the logits [B, K] of `images` [B, C, H, W]."""


class Step(NamedTuple):
    """One thing that a runtime does to run a network: a node, or several fused into one."""

    names: tuple[str, ...]  # of the ONNX file's nodes or of their outputs, as far as it tells
    kind: str  # the runtime's own word for it
    ms: float  # per call


def per_call(times: list[float], calls: int) -> float:
    """Returns the time that a step takes of a call, in ms, from all its times in some calls.

    The longest quarter, of which interruptions are a part, does not count.
    """
    usual = sorted(times)[: -(-3 * len(times) // 4)]
    return sum(usual) / len(usual) * len(times) / calls


class Runtime(ABC):
    """One way to run a network; a file of `pqd.runtimes` defines and registers one.

    Attributes:
        name: as in `runtime.names` and in results.
        title: its proper name, for tables.
        package: what pip installs and Python imports.
        runs: what it opens: an ONNX file, a .pte file, or the network itself (an `nn.Module`).
        scheme: how it wants networks quantized, as a `target`; None where it runs none in INT8.
        usual: whether it is measured where nothing is said.
        reopens: whether every block of a measurement opens a session of its own; not where
            opening takes long.
    """

    name: str
    title: str
    package: str
    runs: Literal["onnx", "pte", "network"] = "onnx"
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

    def file(self, model: Path) -> Path | None:
        """Returns the file that it opens for the model of an ONNX file: that one, or one beside it.

        None where there is none.
        """
        if self.runs == "onnx":
            return model
        beside = model.with_suffix(f".{self.runs}")
        return beside if beside.is_file() else None

    def write(
        self, network: Any, model: Path, shape: tuple[int, int, int], metadata: dict[str, Any]
    ) -> str | None:
        """Writes the file that it opens, where that is another one than the ONNX file.

        Args:
            network: with any constraints attached.
            model: the ONNX file to write it beside, see `file`.
            shape: of an image, (C, H, W).
            metadata: as in the ONNX file.

        Returns:
            What to warn of, in one line.
        """
        return None

    @abstractmethod
    def open(self, model: Any, threads: int) -> Session:
        """Opens what the runtime runs (see `runs`) on `threads` threads."""

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Returns the block within which sessions of `count` threads are opened and run.

        `pqd.measure.cpu.pinned` enters it, before the process is pinned.
        """
        return nullcontext()

    def float_compute_nodes(self, model: Any) -> int | None:
        """Counts the nodes of a model (see `runs`) that the runtime computes in float.

        Returns:
            The count; None where the runtime does not tell.
        """
        return None

    def profile(self, model: Path, threads: int, images: Array, calls: int) -> list[Step]:
        """Tells what the time of an ONNX file goes to, by the runtime's own profiler.

        Args:
            model: the file.
            threads: how many to run it on.
            images: [B, C, H, W], of a call.
            calls: how many to take the times over, besides one before.

        Returns:
            What is done in a call; nothing where the runtime does not tell.
        """
        return []


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
