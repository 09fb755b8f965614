"""The one error type for a user's mistake."""

from hydra.errors import CompactHydraException


class UserError(CompactHydraException):
    """A mistake of the user's: one line saying what is wrong, where, and what is accepted.

    Hydra prints a `CompactHydraException` as its message alone and exits with 1; every other
    exception is our bug and keeps its stack trace.
    """


def choices(what: str, given: object, accepted: object) -> UserError:
    """Builds the error for a name that is none of the accepted ones, naming the nearest.

    Args:
        what: what the name stands for, e.g. `"backbone.name"`.
        given: the name as given.
        accepted: the accepted names, an iterable of str.
    """
    import difflib

    names = sorted(str(name) for name in accepted)  # type: ignore[attr-defined]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UserError(f"{what}={given} is unknown{hint}; choose from: {', '.join(names)}")
