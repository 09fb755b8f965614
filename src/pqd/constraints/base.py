"""What a constraint is: it holds from the stage that attaches it to the deployed network."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import fx

from pqd.errors import choices
from pqd.registry import Registry

Write = Callable[[fx.GraphModule, Path], None]  # a network, as the ONNX file that is deployed


class Constraint(ABC):
    """What weights and activations of a network are allowed to be; a subclass registers itself.

    Attributes:
        name: in recipes.
        in_float: whether it holds in FP32, too; else `remove` takes it off.
    """

    name: ClassVar[str]
    in_float: ClassVar[bool] = True

    @abstractmethod
    def attach(self, model: fx.GraphModule) -> None:
        """Puts the constraint on a traced network, in place.

        Raises:
            UserError: the network does not bear it.
        """

    @abstractmethod
    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Returns, as JSON, what `rebuild` needs; tensors are in the network's state."""

    @classmethod
    @abstractmethod
    def rebuild(cls, description: dict[str, Any]) -> "Constraint":
        """Returns the constraint of a description, ready to be attached to the same backbone."""

    def before_step(  # noqa: B027
        self, model: fx.GraphModule, step: int, steps: int, write: Write
    ) -> None:
        """Called before each training step, of the stage that attaches it and of all later ones.

        Args:
            model: in training mode, in which it stays.
            step: from 0, over the whole stage.
            steps: of the whole stage.
            write: writes what would be deployed.
        """

    def settle(self, model: fx.GraphModule, write: Write) -> dict[str, Any]:
        """Sees to it, in place, that the constraint holds where a stage ends.

        Returns:
            Further figures of a `pqd.result.StageResult`.
        """
        return {}

    def deploy(self, model: fx.GraphModule) -> None:  # noqa: B027
        """Brings the network to its deployed form, in place.

        Nothing to do for parametrizations of weights: their values are deployed.
        """

    def remove(self, model: fx.GraphModule) -> None:  # noqa: B027
        """Takes off, in place, what holds for integers only; stored weights stay."""


CONSTRAINTS: Registry[type[Constraint]] = Registry()


def attach(model: fx.GraphModule, constraint: Constraint) -> None:
    """Attaches a constraint, in place, and notes that the network carries it."""
    constraint.attach(model)
    model.meta["constraints"] = [*constraints(model), constraint]


def constraints(model: fx.GraphModule) -> list[Constraint]:
    """Returns the constraints that a network carries, in the order they were attached."""
    return list(model.meta.get("constraints", ()))


def describe(model: fx.GraphModule) -> list[dict[str, Any]]:
    """Returns the recipe of a network's constraints, as JSON."""
    return [{"constraint": c.name} | c.describe(model) for c in constraints(model)]


def rebuild(model: fx.GraphModule, recipe: list[dict[str, Any]]) -> None:
    """Attaches the constraints of a recipe, in place.

    Raises:
        UserError: a constraint is not registered, or the network does not bear it.
        KeyError: a description is incomplete.
    """
    for description in recipe:
        name = description["constraint"]
        if name not in CONSTRAINTS:
            raise choices("constraint", name, CONSTRAINTS)
        attach(model, CONSTRAINTS[name].rebuild(description))


def without_integers(model: fx.GraphModule) -> None:
    """Takes off, in place, the constraints that do not hold in FP32."""
    for constraint in constraints(model):
        if not constraint.in_float:
            constraint.remove(model)
    model.meta["constraints"] = [c for c in constraints(model) if c.in_float]
