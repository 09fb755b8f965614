"""Options: what a setting accepts and what it decides, declared beside its default."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pqd.errors import UserError, choices


class Decides(Enum):
    """What depends on an option: cache keys, waves of jobs and averages in reports follow it."""

    OUTCOME = "the trained network"  # an option counts unless it says otherwise
    REPEAT = "one repetition of the same experiment"  # reports average over it
    FILES = "the form of the files made of the same network, and their figures"
    FIGURES = "what is measured of the same network"
    PLACE = "where something is found; only its content counts"
    NOTHING = "neither the network nor its figures"


@dataclass(frozen=True)
class Interval:
    """The numbers that an option accepts; an open end is not accepted itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Tells whether a number is accepted."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def refuse(self, key: str, value: float) -> UserError:
        """Builds the error for a number outside."""
        if math.isfinite(self.high):
            ends = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return UserError(f"{key}={value} is outside {ends[0]}{self.low}, {self.high}{ends[1]}")
        if not math.isfinite(value):
            return UserError(f"{key}={value} must be finite")
        if self.open_low:
            return UserError(f"{key}={value} must be greater than {self.low} and finite")
        return UserError(f"{key}={value} is too small; at least {self.low} is accepted")


@dataclass(frozen=True)
class Option:
    """What is known of a setting besides its type and default.

    Attributes:
        decides: what depends on it.
        interval: the numbers accepted; None accepts all.
        choices: returns the names accepted; None accepts all.
        digest: it names a file or folder, whose content counts in cache keys.
        axis: its title where reports show it as an axis: cases that differ in it alone share one
            frontier.
        tag: what precedes its value in the name of a run; a value of 0 asks for nothing there.
        tag_default: whether the name holds the default value, too.
    """

    decides: Decides = Decides.OUTCOME
    interval: Interval | None = None
    choices: Callable[[], Iterable[str]] | None = None
    digest: bool = False
    axis: str | None = None
    tag: str | None = None
    tag_default: bool = False


PLAIN = Option()


def option(
    default: Any = MISSING,
    *,
    decides: Decides = Decides.OUTCOME,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None,
    digest: bool = False,
    axis: str | None = None,
    tag: str | None = None,
    tag_default: bool = False,
) -> Any:
    """Declares a field of a settings dataclass.

    Args:
        default: the default value, or a list or a class that makes it.
        decides: see `Option`, as for the other arguments.
        low: the smallest number accepted.
        high: the largest number accepted.
        above: numbers must be greater than this one.
        below: numbers must be smaller than this one.
        choices: the names accepted, or what returns them.
        digest: see `Option`.
        axis: see `Option`.
        tag: see `Option`.
        tag_default: see `Option`.
    """
    interval = None
    if any(bound is not None for bound in (low, high, above, below)):
        lowest = above if above is not None else low if low is not None else -math.inf
        highest = below if below is not None else high if high is not None else math.inf
        interval = Interval(lowest, highest, above is not None, below is not None)
    names = choices if callable(choices) or choices is None else tuple(choices).__iter__
    given = Option(decides, interval, names, digest, axis, tag, tag_default)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"option": given})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"option": given})
    return field(default=default, metadata={"option": given})


def option_of(of: "Field[Any]") -> Option:
    """Returns what is known of a field; one declared without `option` counts, and accepts all."""
    return of.metadata.get("option", PLAIN)


def leaves(
    settings: Any, prefix: str = "", inherited: Decides = Decides.OUTCOME
) -> Iterator[tuple[str, Any, Option]]:
    """Yields the dotted key, value and option of every setting below a dataclass.

    A group of settings passes on to all its members that it does not decide the outcome.
    """
    for of in fields(settings):
        given, value, key = option_of(of), getattr(settings, of.name), f"{prefix}{of.name}"
        if inherited is not Decides.OUTCOME:
            given = Option(**vars(given) | {"decides": inherited})
        if is_dataclass(value):
            yield from leaves(value, f"{key}.", given.decides)
        else:
            yield key, value, given


def check(settings: Any, prefix: str = "") -> None:
    """Checks every setting below a dataclass against what its option accepts.

    Raises:
        UserError: a value is not accepted; the message names the key and what is.
    """
    for key, value, given in leaves(settings, prefix):
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if given.interval is not None and item not in given.interval:
                raise given.interval.refuse(key, item)
            if given.choices is not None and item not in (names := list(given.choices())):
                raise choices(key, item, names)


def selected(
    settings: Any,
    prefix: str = "",
    *,
    kinds: Collection[Decides] = (Decides.OUTCOME, Decides.REPEAT),
    digest: Callable[[str, Path], str] | None = None,
) -> dict[str, Any]:
    """Returns the settings below a dataclass that decide one of `kinds`, by dotted key.

    Args:
        settings: a dataclass.
        prefix: of the keys.
        kinds: of the settings to return; by default what a trained network depends on.
        digest: returns, of a key and the file it names, what stands for its content; None leaves
            the file's name.
    """
    return {
        key: digest(key, Path(value)) if digest and given.digest and value else value
        for key, value, given in leaves(settings, prefix)
        if given.decides in kinds
    }
