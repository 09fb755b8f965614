"""The stages there are, by name and by letter."""

from pqd.errors import UserError
from pqd.registry import Registry
from pqd.stages.base import Stage

NO_STAGES = "none"  # the order without any

STAGES: Registry[type[Stage]] = Registry()


def spelled(order: str) -> list[type[Stage]]:
    """Returns the stages of an order's name, e.g. `pqd`; the baseline is not among them.

    Raises:
        UserError: a letter stands for no stage, or stands there twice.
    """
    letters = {stage.letter: stage for stage in STAGES.values() if stage.letter}
    name = "" if order == NO_STAGES else order
    known = ", ".join(f"{letter} ({stage.name})" for letter, stage in sorted(letters.items()))
    for letter in name:
        if letter not in letters:
            raise UserError(
                f"order.name={order}: {letter!r} is no stage; spell it from {known}, or {NO_STAGES}"
            )
    if len(set(name)) < len(name):
        raise UserError(f"order.name={order} names a stage twice; each at most once")
    return [letters[letter] for letter in name]


def spell(stages: list[str]) -> str:
    """Returns the name of the order of these stages: their letters, or `none`.

    Of a stage that is not registered here (a result may come from elsewhere) its initial.
    """
    letters = [STAGES[name].letter if name in STAGES else name[:1] for name in stages]
    return "".join(letters) or NO_STAGES
