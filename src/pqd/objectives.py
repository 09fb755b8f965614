"""What a search optimizes: figures of a run that were not measured on the test split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pqd.result import Result


@dataclass(frozen=True)
class Objective:
    """One figure of a completed run.

    Attributes:
        title: what it is in a sentence.
        of: returns it, None where it was not measured.
        maximise: whether more is better.
    """

    title: str
    of: "Callable[[Result], float | None]"
    maximise: bool = False


def _validation_accuracy(result: "Result") -> float | None:
    return result.stages[-1].validation_accuracy


def _latency_ms(result: "Result") -> float | None:
    deployed = result.final.deployed if result.final else None
    return deployed.p50_ms if deployed else None


def _package_bytes(result: "Result") -> float | None:
    return result.final.sizes.get("package") if result.final else None


OBJECTIVES = {
    # %, of the last stage
    "validation_accuracy": Objective("validation accuracy", _validation_accuracy, maximise=True),
    # median, in the fastest runtime, with the first threads and batch size
    "latency_ms": Objective("latency", _latency_ms),
    "package_bytes": Objective("package size", _package_bytes),
}


def values(result: "Result", names: Iterable[str]) -> list[float] | None:
    """Returns the objectives of a run in the order of `names`.

    Returns:
        None if the run did not complete, or one of them was not measured.
    """
    if result.status != "completed":
        return None
    found = [OBJECTIVES[name].of(result) for name in names]
    known = [float(value) for value in found if value is not None]
    return known if len(known) == len(found) else None


def excess(name: str, value: float, limit: float) -> float:
    """Returns by how much an objective breaks its limit: at most, or at least where more is better.

    Returns:
        0 or less where it keeps to it.
    """
    return limit - value if OBJECTIVES[name].maximise else value - limit
