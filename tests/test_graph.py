"""What is asked of a traced network's graph."""

import pytest
import torch
from torch import fx, nn

from pqd.graph.view import Graph


class TestGraph:
    @pytest.fixture(scope="class")
    def nodes(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("buffer", torch.zeros(1, 4, 1, 1))

            def forward(self, x):
                high, low = x.chunk(2, 1)
                twice = low + low
                joined = torch.cat([high, twice.view(twice.shape[0], -1, 4, 4).mT], 1)
                constant = torch.cat([joined, self.buffer.expand_as(joined)], 1)
                several = x.split(2, 1)[1:]
                other = torch.stack(several).permute(1, 0, 2, 3, 4)[:, 0]
                return other + constant.sum() + self.buffer

        graph = Graph(fx.symbolic_trace(Net()))
        return graph, {node.name: node for node in graph.model.graph.nodes}

    def test_sources(self, nodes):
        graph, by_name = nodes
        assert [n.name for n in graph.sources(by_name["cat"])] == ["x", "add"]
        assert graph.sources(by_name["cat_1"]) == [by_name["cat_1"]]  # a constant comes in
        assert [n.name for n in graph.sources(by_name["getitem_4"])] == ["x"]

    def test_activations_constants_and_shapes(self, nodes):
        graph, by_name = nodes
        others = [name for name, node in by_name.items() if not graph.is_activation(node)]
        assert others == ["getattr_1", "getitem_2", "buffer", "expand_as", "buffer_1"]
        assert graph.readers(by_name["add"]) == [by_name["view"]]

    def test_sums(self, nodes):
        graph, by_name = nodes
        sums = [name for name, node in by_name.items() if graph.is_sum(node)]
        assert sums == ["add", "add_1"]
        assert [n.name for n in graph.activations(by_name["add"])] == ["getitem_1", "getitem_1"]

    def test_tuples(self, nodes):
        graph, by_name = nodes
        tuples = [name for name, node in by_name.items() if graph.is_tuple(node)]
        assert tuples == ["chunk", "split", "getitem_3"]
