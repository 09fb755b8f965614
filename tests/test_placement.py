"""Where activations are quantized, and which layers cannot be."""

import copy

import pytest
import torch
from torch import fx, nn

import odd_nets
from pqd.constraints import attach as constrain
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.placement import remove_fake_quants
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.deploy import deployed
from pqd.stages.quantize import calibrate


class TestPlacement:
    def test_no_quantizer_stands_between_float_operations(self):
        model = fx.symbolic_trace(odd_nets.LogSumExp())
        constrain(model, FakeQuantization(127))
        (positive,) = (node for node in model.graph.nodes if node.name == "add_2")
        assert {user.name for user in positive.users} == {"activation_quantizers_add_2", "log_1"}

    def test_a_joined_value_that_others_read_has_one_quantizer(self):
        model = fx.symbolic_trace(odd_nets.Mixed())
        constrain(model, FakeQuantization(127))
        (signed,) = (node for node in model.graph.nodes if node.name == "signed")
        (quantizer,) = signed.users
        assert sorted(user.name for user in quantizer.users) == ["cat", "other"]
        joined = [node for node in model.graph.nodes if node.target == quantizer.target]
        assert [node.args[0].name for node in joined] == ["signed", "relu6"]

    def test_joins_that_share_a_part_share_a_quantizer(self):
        class Chain(odd_nets.Odd):
            def middle(self, x):
                a, b, c = (torch.relu(x * factor) for factor in (1, 2, 3))
                return torch.cat([torch.cat([a, b], 1)[:, :8], torch.cat([b, c], 1)[:, :8]], 1)

        model = fx.symbolic_trace(Chain())
        constrain(model, FakeQuantization(127))
        targets = {
            node.args[0].name: node.target.rpartition(".")[2]
            for node in model.graph.nodes
            if "activation_quantizers" in str(node.target)
        }
        assert [targets[name] for name in ("relu", "relu_1", "relu_2")] == ["relu"] * 3

    def test_what_a_float_operation_reads_alone_is_not_quantized_by_a_pool_or_join(self):
        class Floats(odd_nets.Odd):
            def middle(self, x):
                x = x.exp()
                return torch.cat([self.pool(x).log() + x, x.clamp(min=1)], 1).sqrt()[:, :16]

        model = fx.symbolic_trace(Floats())
        constrain(model, FakeQuantization(127))
        placed = [name.rpartition(".")[2] for name in activation_fake_quants(model)]
        assert placed == ["x", "stem_2", "sqrt", "last_2", "pool_1"]

    def test_a_layer_that_reads_a_constant_stays_float(self):
        class Position(odd_nets.Odd):
            def __init__(self):
                super().__init__()
                self.register_buffer("places", torch.randn(1, 4, 8, 8))
                self.embedding = nn.Conv2d(4, 16, 1)

            def middle(self, x):
                return x + self.embedding(self.places)

        model = odd_nets.trained(Position)
        constrain(model, FakeQuantization(127))
        calibrate(model, [odd_nets.data(64, 1)[0]])
        round_biases(model)
        network = deployed(model)
        assert type(network.embedding) is nn.Conv2d
        images = odd_nets.data(500, 3)[0]
        with torch.no_grad():
            same = model(images).argmax(1) == network(images).argmax(1)
        assert same.float().mean() >= 0.995

    @pytest.mark.parametrize("kind", odd_nets.KINDS, ids=lambda kind: kind.__name__)
    def test_taking_quantizers_off_gives_the_network_back(self, kind):
        model = odd_nets.trained(kind).eval()
        again = copy.deepcopy(model)
        constrain(again, FakeQuantization(127))
        remove_fake_quants(again)
        images = odd_nets.data(8, 1)[0]
        assert torch.equal(again(images), model(images))
        assert again.state_dict().keys() == model.state_dict().keys()


class TestRefusals:
    @pytest.mark.parametrize("parameter", ["weight", "bias"])
    def test_a_parameter_that_others_read(self, parameter):
        class Tied(odd_nets.Odd):
            def middle(self, x):
                return x * getattr(self.fc, parameter).sum()

        model = fx.symbolic_trace(Tied())
        deployed(model)  # the layer stays as it is
        constrain(model, FakeQuantization(127))
        with pytest.raises(UserError, match=rf"layer fc cannot be .* its {parameter} .*\(sum_1\)"):
            deployed(model)
