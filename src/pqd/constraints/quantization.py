"""The constraint that weights are INT8 (or fewer bits) and activations UINT8 (or INT8)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import fx

from pqd.constraints.base import CONSTRAINTS, Constraint
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.integers import to_integers
from pqd.constraints.parametrization import find
from pqd.constraints.placement import insert_fake_quants, remove_fake_quants
from pqd.scheme import Scheme


@CONSTRAINTS.register
class FakeQuantization(Constraint):
    """Fake-quantizers of all weights and, where a target needs them, of activations."""

    name = "fake_quant"
    in_float = False

    def __init__(self, code_max: int | Mapping[str, int], scheme: Scheme = Scheme()) -> None:
        """Takes what the fake-quantizers are.

        Args:
            code_max: weight codes lie in [-code_max, code_max], 127 for 8 bits, 63 for 7: of all
                layers, or of each by name.
            scheme: of the activations, as the target wants it.
        """
        self.code_max, self.scheme = code_max, scheme

    def attach(self, model: fx.GraphModule) -> None:
        """Starts uncalibrated: activations in [0, 1].

        Raises:
            UserError: a layer cannot be deployed as integers.
        """
        insert_fake_quants(model, self.code_max, self.scheme)

    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Names the scheme and the largest code: of all layers, or of each where they differ."""
        found = {name: q.code_max for name, q in find(model, WeightFakeQuant).items()}
        values = set(found.values())
        code_max = values.pop() if len(values) == 1 else found
        return {"code_max": code_max, "scheme": asdict(self.scheme)}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "FakeQuantization":
        """Returns the quantization of a description; an older one names no scheme."""
        return cls(description["code_max"], Scheme(**description.get("scheme", {})))

    def deploy(self, model: fx.GraphModule) -> None:
        """Makes layers integer ones, with INT32 biases."""
        to_integers(model, self.scheme)

    def remove(self, model: fx.GraphModule) -> None:
        """Takes all fake-quantizers off; the weights stay as they are stored."""
        remove_fake_quants(model)
