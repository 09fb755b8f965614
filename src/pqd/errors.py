"""The one error type for a user's mistake, and errors as one line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException

LONGEST = 300  # characters of an error that is told in one line


class UserError(CompactHydraException):
    """A mistake of the user's: one line saying what is wrong, where, and what is accepted.

    Hydra prints a `CompactHydraException` as its message alone and exits with 1; every other
    exception is our bug and keeps its stack trace.
    """


def choices(what: str, given: object, accepted: Iterable[object]) -> UserError:
    """Builds the error for a name that is none of the accepted ones, naming the nearest.

    Args:
        what: what the name stands for, e.g. `"backbone.name"`.
        given: the name as given.
        accepted: the accepted names.
    """
    names = sorted(str(name) for name in accepted)
    near = nearest(given, names)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UserError(f"{what}={given} is unknown{hint}; choose from: {', '.join(names)}")


def nearest(given: object, names: Iterable[str], most: int = 1) -> list[str]:
    """Returns at most `most` of the names that are spelled like `given`, the likest first."""
    import difflib

    return difflib.get_close_matches(str(given), list(names), n=most, cutoff=0.5)


def one_line(error: BaseException | str, *, named: bool = False) -> str:
    """Returns an error as one line of at most `LONGEST` characters.

    Args:
        error: the error, or its text.
        named: puts the error's type in front, for errors of other people's code.
    """
    kind = error if isinstance(error, str) else type(error).__name__
    text = " ".join(str(error).split()) or kind
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "")
        short = name if len(name) <= LONGEST // 2 else f"{name[:70]}...{name[-70:]}"
        text = f"{short}: {error.strerror}" if short else error.strerror
    return (f"{kind}: {text}" if named and text != kind else text)[:LONGEST]


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Says where a user's mistake came to light: `place` goes in front of the message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error.__cause__
