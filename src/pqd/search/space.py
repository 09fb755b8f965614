"""The space that a search draws from, in Hydra's own grammar of sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep

from pqd.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

LOG, SAVES, COSTS = "log", "saves", "costs"
TAGS = (LOG, SAVES, COSTS)

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One setting that a search chooses.

    Attributes:
        key: its dotted key or config group.
        given: the sweep as the user wrote it.
        choices: what to choose from; None where there is an interval of numbers instead.
        low: of the interval.
        high: of the interval, included.
        step: between two values; None is any value.
        log: whether it is drawn on a logarithmic scale.
        sign: 1 where a larger value makes the network smaller or faster, -1 where a smaller one
            does, 0 where neither is known.
    """

    key: str
    given: str
    choices: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    sign: int = 0

    def draw(self, trial: "Trial") -> Any:
        """Returns the value of a trial, which is drawn where it has none yet."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int):
            step = int(self.step or 1)
            return trial.suggest_int(self.key, self.low, int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def spell(self, value: Any) -> str:
        """Returns a value as it stands in an override: with three digits on a logarithmic scale."""
        if isinstance(value, float):
            return f"{value:.3g}" if self.log else f"{value:.6g}"
        return str(value)

    def saving(self, value: Any) -> float:
        """Returns a number that is larger for a value that makes the network smaller or faster."""
        return self.sign * float(value) if self.sign else 0.0


def space(overrides: Sequence[Override]) -> list[Dimension]:
    """Returns the dimensions of the overrides that are sweeps; of a key given twice the last.

    Raises:
        UserError: there is none, a sweep is empty, or a tag or its place is not understood.
    """
    last = {override.get_key_element(): override for override in overrides}
    found = [_dimension(override) for override in last.values() if override.is_sweep_override()]
    if not found:
        raise UserError(
            "a search has nothing to choose from; give it a range, an interval or several values, "
            "e.g. prune.sparsity='interval(0.3,0.95)' order=pqd,qpd"
        )
    return found


def saves(dimensions: Sequence[Dimension], one: Params, other: Params) -> bool:
    """Tells whether one trial compresses at least as much as another in every known respect."""
    return all(d.saving(one[d.key]) >= d.saving(other[d.key]) for d in dimensions)


def _dimension(override: Override) -> Dimension:
    sweep, key = override.value(), override.get_key_element()
    given = override.get_value_string()
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    if unknown := sorted(set(tags) - set(TAGS)):
        raise UserError(f"{key}={given}: tag {unknown[0]} is unknown; {', '.join(TAGS)} are not")
    if {SAVES, COSTS} <= set(tags):
        raise UserError(f"{key}={given}: a larger value either saves or costs; give one tag")
    shape: dict[str, Any] = {"sign": (SAVES in tags) - (COSTS in tags)}
    if isinstance(sweep, IntervalSweep):
        shape |= {"low": sweep.start, "high": sweep.end, "log": LOG in tags}
    elif isinstance(sweep, RangeSweep) and LOG not in tags and not sweep.shuffle:
        if values := [float(value) for value in sweep.range()]:
            whole = all(isinstance(part, int) for part in (sweep.start, sweep.step))
            kind: type[float] = int if whole else float
            ends = kind(min(values)), kind(round(max(values), 12))
            shape |= {"low": ends[0], "high": ends[1], "step": abs(kind(sweep.step))}
    else:
        shape |= {"choices": tuple(dict.fromkeys(override.sweep_string_iterator()))}
    if shape.get("choices") == () or not {"choices", "low"} & set(shape):
        raise UserError(f"{key}={given} is empty, so there is nothing to choose from")
    if shape["sign"] and "choices" in shape:
        _check_numbers(key, given, shape["choices"])
    if "low" in shape and not shape["low"] <= shape["high"]:
        raise UserError(f"{key}={given} ends before it begins")
    if shape.get("log") and shape["low"] <= 0:
        raise UserError(f"{key}={given}: a logarithmic scale starts above 0")
    return Dimension(key, given, **shape)


def _check_numbers(key: str, given: str, choices: Sequence[str]) -> None:
    try:
        _ = [float(choice) for choice in choices]
    except ValueError:
        raise UserError(f"{key}={given}: only numbers save or cost") from None
