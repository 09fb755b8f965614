"""Replacing a layer, together with the batch norm that follows it."""

from torch import fx, nn

from pqd.errors import UserError
from pqd.graph.view import Graph


def with_batch_norm(
    graph: Graph, node: fx.Node
) -> tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d | None]:
    """Returns a layer and the batch norm that is folded into it."""
    layer = graph.module(node)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    following = graph.folded_batch_norm(node)
    batch_norm = None if following is None else graph.module(following)
    assert isinstance(batch_norm, nn.BatchNorm2d | None)
    return layer, batch_norm


def replace_layer(graph: Graph, node: fx.Node, new: nn.Module) -> None:
    """Puts `new` in the place of a layer and the batch norm that is folded into it, in place.

    Raises:
        UserError: something else reads a parameter of the layer.
    """
    name = str(node.target)
    for other in graph.model.graph.nodes:
        owner, _, parameter = str(other.target).rpartition(".")
        if other.op == "get_attr" and owner == name:
            readers = ", ".join(user.name for user in other.users)
            raise UserError(
                f"backbone layer {name} cannot be deployed: its {parameter} is read outside the "
                f"layer as well ({readers}); only the layer itself may read it"
            )
    batch_norm = graph.folded_batch_norm(node)
    graph.model.set_submodule(name, new)
    node.args, node.kwargs = tuple(graph.activations(node)), {}
    if batch_norm is not None:
        batch_norm.replace_all_uses_with(node)
        graph.model.graph.erase_node(batch_norm)
