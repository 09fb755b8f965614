"""Attaching, finding and taking off the parametrizations of a layer's weight.

What is stored is `original`; what the layer computes with is `last(...first(original))`.
"""

from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

P = TypeVar("P", bound=nn.Module)


def attached(layer: nn.Module) -> parametrize.ParametrizationList | None:
    """Returns what is attached to a layer's weight, None if nothing is."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    everything = cast(nn.ModuleDict, layer.parametrizations)
    return cast(parametrize.ParametrizationList, everything["weight"])


def attach(
    layer: nn.Module,
    parametrization: nn.Module,
    before: type[nn.Module] | tuple[type[nn.Module], ...] = (),
) -> None:
    """Adds a parametrization to a layer's weight: `before` some kinds, behind all others."""
    there = attached(layer)
    places = [i for i, p in enumerate(there or ()) if isinstance(p, before)]
    if there is not None and places:
        there.insert(places[0], parametrization)
    else:
        parametrize.register_parametrization(layer, "weight", parametrization)


def value_before(layer: nn.Module, kind: type[nn.Module]) -> Tensor:
    """Returns what the first parametrization of a kind makes the weight of; all of it if none."""
    there = attached(layer)
    if there is None:
        return cast(Tensor, layer.weight)
    value = there.original
    for parametrization in there:
        if isinstance(parametrization, kind):
            break
        value = parametrization(value)
    return value


def detach_last(layer: nn.Module) -> None:
    """Takes off what was attached last; without anything left, what is stored is the weight."""
    there = attached(layer)
    if there is not None and len(there) > 1:
        del there[-1]
    else:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def bake(model: nn.Module) -> None:
    """Replaces parametrized weights by their values, in place.

    `parametrize.remove_parametrizations` would break other copies of the network: copies share
    the class of a layer, which it changes.
    """
    for layer in model.modules():
        if attached(layer) is not None:
            weight = cast(Tensor, layer.weight).detach()
            del layer.parametrizations
            layer.__class__ = type(layer).__bases__[0]
            layer.register_parameter("weight", nn.Parameter(weight))


def find(model: nn.Module, kind: type[P]) -> dict[str, P]:
    """Returns the weight parametrizations of one kind, by layer name, in the network's order."""
    return {
        name: parametrization
        for name, layer in model.named_modules()
        for parametrization in attached(layer) or ()
        if isinstance(parametrization, kind)
    }
