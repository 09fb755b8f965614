"""Where fake-quantizers go in a traced network.

Convolutions and linear layers compute with integers: they read quantized values and (with the batch
norm and ReLU that follow them) write one. So do sums and average pools, if one of their inputs
or readers does. A value has one fake-quantizer. Activations that are joined share one, so that
operations that join, split, move or select them keep their grid. Quantizers stand after ReLU, not
before it, so that a runtime fuses convolution and ReLU. Between a convolution and a sum that the
target fuses there is none, or one that only clips. A quantizer never stands between two float
operations: rounding may give the second a value that the first never returns, such as 0 for a
logarithm. An activation that is joined with constants is quantized with them, not before.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, fx, nn

from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.parametrization import attach, detach_last, find
from pqd.errors import UserError
from pqd.graph.view import Graph
from pqd.scheme import Scheme

PREFIX = "activation_quantizers"


class Quantizers(NamedTuple):
    """What makes the fake-quantizers of a network."""

    weight: Callable[[int, Tensor], WeightFakeQuant]  # of the largest code and the weight
    # Of the places that share it, whether it is symmetric, whether it rounds.
    activation: Callable[[int, bool, bool], ActivationFakeQuant]


ABS_MAX = Quantizers(lambda code_max, _: WeightFakeQuant(code_max), ActivationFakeQuant)


class Placement:
    """Which values of a traced network get fake-quantizers, and who reads them quantized."""

    def __init__(self, graph: Graph, scheme: Scheme) -> None:
        """Finds the operations that compute with integers."""
        self._graph = graph
        self._nodes = list(graph.model.graph.nodes)
        self._integer = {node for node in self._nodes if graph.is_layer(node)}
        fused = fused_sums(graph) if scheme.sums != "both" else {}
        self._integer |= set(fused)
        self._left = set(fused.values()) if scheme.sums == "skip" else set[fx.Node]()
        # Those whose quantizers do not round.
        self.clipped = {
            value
            for add, value in fused.items()
            if scheme.sums == "clip" and self._adds(add, value)
        }
        self._chosen = self._choose()
        while more := {node for node in self._nodes if self._joins_in(node)} - self._integer:
            self._integer |= more
            self._chosen = self._choose()
        self._written = {graph.end(node) for node in self._integer} - self._left

    def groups(self) -> list[list[fx.Node]]:
        """Returns the nodes whose output is quantized; those in one list share a quantizer."""
        group = {node: [node] for node in self._nodes if node in self._chosen}
        for join in filter(self._graph.is_join, self._nodes):
            sources = [source for source in self._graph.sources(join) if source in group]
            joined = {id(group[source]): group[source] for source in sources}
            together = [node for nodes in joined.values() for node in nodes]
            group |= dict.fromkeys(together, together)
        order = {node: index for index, node in enumerate(self._nodes)}
        unique = {id(nodes): sorted(nodes, key=order.__getitem__) for nodes in group.values()}
        return list(unique.values())

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Returns the readers of a node with a quantizer that read the quantized value."""
        everyone = node in self._written
        found = [
            user
            for user in self._graph.readers(node)
            if self._wants_integers(user) or (everyone and not self._meets_constants(user))
        ]
        shapes = [user for user in node.users if not self._graph.is_activation(user)]
        return [*found, *shapes] if found else []

    def _adds(self, node: fx.Node, value: fx.Node) -> bool:
        """Tells whether OpenVINO computes a sum in the convolution that `value` comes from.

        It puts the result where the other input was, which the convolution must not read, too.
        """
        graph = self._graph
        layer = value if graph.is_layer(value) else graph.activations(value)[0]
        others = [v for v in graph.activations(node) if v is not value]
        read = graph.sources(graph.activations(layer)[0])
        return all(set(graph.sources(other)).isdisjoint(read) for other in others)

    def _choose(self) -> set[fx.Node]:
        """Returns what the integer operations found so far read and write."""
        graph, chosen = self._graph, set[fx.Node]()
        for node in self._integer:
            for value in self._read(node):
                chosen.update(graph.sources(value))
            end = graph.end(node)
            if not graph.is_average_pool(node) and not self._is_returned(end):
                chosen.add(end)
        return chosen - self._left

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """Returns the inputs of an integer operation."""
        activations = self._graph.activations(node)
        return activations if self._graph.is_sum(node) else activations[:1]

    def _joins_in(self, node: fx.Node) -> bool:
        """Tells whether a sum or pool has to do with quantized values."""
        graph = self._graph
        if graph.is_average_pool(node):
            return node in self._chosen
        if not graph.is_sum(node):
            return False
        sources = [source for value in self._read(node) for source in graph.sources(value)]
        return not self._chosen.isdisjoint([node, graph.end(node), *sources])

    def _wants_integers(self, node: fx.Node) -> bool:
        """Tells whether a node, or one behind it that reads what it moves, computes in integers."""
        return node in self._integer or (
            self._graph.is_pass(node) and any(map(self._wants_integers, node.users))
        )

    def _meets_constants(self, node: fx.Node) -> bool:
        """Tells whether all that a node moves goes where constants come beside it.

        They are on no grid. Of a quantized value with channels of 0.5 around it OpenVINO 2026.4
        makes something else: 96 % of classes agreed with ONNX Runtime.
        """
        if self._graph.brings_constants(node):
            return True
        return self._graph.is_pass(node) and all(
            map(self._meets_constants, self._graph.readers(node))
        )

    def _is_returned(self, node: fx.Node) -> bool:
        """Tells whether the value, moved or not, is what the network returns."""
        return any(
            user.op == "output" or (self._graph.is_pass(user) and self._is_returned(user))
            for user in node.users
        )


def fused_sums(graph: Graph) -> dict[fx.Node, fx.Node]:
    """Returns the sums that can be computed in a convolution, and their input that comes from it.

    Of two convolutions it is the one behind more layers: the other one is in the skip branch.
    """
    depths: dict[fx.Node, int] = {}
    made = set[fx.Node]()  # by convolutions, with their batch norms
    fused: dict[fx.Node, fx.Node] = {}
    for node in graph.model.graph.nodes:
        depth = max((depths[read] for read in node.all_input_nodes), default=0)
        depths[node] = depth + graph.is_layer(node)
        if graph.is_layer(node) and isinstance(graph.module(node), nn.Conv2d):
            made.add(graph.folded_batch_norm(node) or node)
        if graph.is_sum(node):
            inputs = [v for v in graph.activations(node) if v in made and graph.follower(v) is node]
            if inputs and len(node.all_input_nodes) > 1:
                fused[node] = max(inputs, key=depths.__getitem__)
    return fused


def insert_fake_quants(
    model: fx.GraphModule,
    code_max: int | Mapping[str, int],
    scheme: Scheme = Scheme(),
    quantizers: Quantizers = ABS_MAX,
) -> None:
    """Attaches fake-quantizers to a traced network, in place.

    Args:
        model: a traced network whose convolutions and linear layers may carry masks.
        code_max: the largest weight code, 127 for 8 bits: of all layers, or of each by name.
        scheme: of the activations.
        quantizers: what makes them.

    Raises:
        UserError: a layer pads with something else than zeros, which ONNX's convolutions do not.
    """
    graph = Graph(model)
    for node in filter(graph.is_layer, model.graph.nodes):
        name = str(node.target)
        padding = getattr(graph.modules[name], "padding_mode", "zeros")
        if padding != "zeros":
            raise UserError(f"backbone layer {name} pads with padding_mode={padding}; only zeros")
        layer = graph.modules[name]
        largest = code_max if isinstance(code_max, int) else code_max[name]
        attach(layer, quantizers.weight(largest, layer.weight))
    placement = Placement(graph, scheme)
    groups = [[(node, placement.readers(node)) for node in group] for group in placement.groups()]
    groups = [read for group in groups if (read := [(n, r) for n, r in group if r])]
    for group in groups:
        name = f"{PREFIX}.{group[0][0].name}"
        rounds = placement.clipped.isdisjoint(node for node, _ in group)
        model.add_submodule(name, quantizers.activation(len(group), scheme.symmetric, rounds))
        for node, readers in group:
            with model.graph.inserting_after(node):
                quantized = model.graph.call_module(name, (node,))
            for reader in readers:
                reader.replace_input_with(node, quantized)
    model.graph.lint()
    model.recompile()


def remove_fake_quants(model: fx.GraphModule) -> None:
    """Undoes `insert_fake_quants`, in place; masks and stored weights stay."""
    graph = Graph(model)
    for node in list(model.graph.nodes):
        if isinstance(graph.module(node), ActivationFakeQuant):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    for name in find(model, WeightFakeQuant):
        detach_last(model.get_submodule(name))
