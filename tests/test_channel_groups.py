"""Channel groups: the same as Torch-Pruning finds, and nothing that is not understood."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import odd_nets
from nets import PreActivation, Residual, traced
from pqd.backbones import build
from pqd.config import BackboneConfig
from pqd.constraints import attach
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.quantization import FakeQuantization
from pqd.graph.channels import channels
from pqd.graph.trace import trace

NAMED = ["resnet8", "resnet18", "resnet18_imagenet_stem", "resnet20", "vgg16_bn", "wrn28_10"]
TIMM = [
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnetx_002",
    "densenet121",
    "repvgg_a0",
    "mnasnet_small",
    "ghostnet_050",
    "resnext26ts",
    "legacy_seresnet18",
    "hardcorenas_a",
    "fbnetc_100",
    "resnet18d",
]


def found(model, size=8):
    return channels(model, (3, size, size))


def sides(groups):
    """Of each group the sides of layers, apart from what the units are."""
    return sorted(sorted((m.layer, m.side) for m in group.members) for group in groups)


def torch_pruning(model, size):
    """The groups of Torch-Pruning in the same form.

    It removes single channels of a grouped convolution, ours whole groups, inputs and outputs
    together: so groups that meet at one are united.
    """
    tp = pytest.importorskip("torch_pruning")
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model.eval(), torch.zeros(1, 3, size, size))
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    kinds = [nn.Conv2d, nn.Linear]
    groups = []
    for group in graph.get_all_groups(ignored_layers=[last], root_module_types=kinds):
        here = set()
        for dependency, _ in group:
            module = dependency.target.module
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                here |= {(names[module], "out"), (names[module], "in")}
            elif isinstance(module, nn.Conv2d | nn.Linear):
                out = graph.is_out_channel_pruning_fn(dependency.handler)
                here.add((names[module], "out" if out else "in"))
            elif isinstance(module, nn.BatchNorm2d):
                here.add((names[module], "out"))
        apart = [other for other in groups if not other & here]
        groups = [*apart, here.union(*(other for other in groups if other & here))]
    return sorted(sorted(group) for group in groups)


def joined(groups):
    """Groups that share a side of a layer, one behind the other in it, as one."""
    whole = []
    for group in map(set, groups):
        apart = [other for other in whole if not other & group]
        whole = [*apart, group.union(*(other for other in whole if other & group))]
    return sorted(sorted(group) for group in whole)


class TestOracle:
    @pytest.mark.parametrize("name", NAMED)
    def test_named_backbones(self, name):
        model = build(BackboneConfig(name, name), 10, 3, 32)
        here = found(model, 32)
        assert sides(here.groups) == torch_pruning(model, 32)
        assert here.unsupported == ()

    @pytest.mark.parametrize("name", TIMM)
    def test_timm(self, name):
        model = build(BackboneConfig("timm", name), 10, 3, 64)
        here = found(model, 64)
        assert joined(sides(here.groups)) == joined(torch_pruning(model, 64))
        assert here.unsupported == ()


class Concatenated(nn.Module):
    """Two branches, joined, flattened, with a gate of few values."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.gate = nn.Conv2d(10, 1, 1)
        self.depthwise = nn.Conv2d(10, 20, 3, padding=1, groups=10)
        self.fc = nn.Linear(20 * 64, 4)

    def forward(self, x):
        x = torch.cat([self.one(x), self.two(x).relu()], 1)
        x = x * self.gate(x).sigmoid()
        return self.fc(self.depthwise(x).flatten(1))


class Pooled(nn.Module):
    """Two convolutions, and a pool between the first and the second."""

    def __init__(self, pool, columns):
        super().__init__()
        self.pool = pool
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 1), nn.Conv2d(columns, 4, 1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.conv2(self.pool(self.conv1(x))).mean((2, 3)))


class TestOperations:
    def test_residual(self):
        (group,) = found(traced(Residual)).groups
        assert group.units == 8
        assert group.width == 1
        assert sides([group]) == [
            [("bn1", "out"), ("bn2", "out"), ("conv1", "out"), ("conv2", "in"), ("conv2", "out"),
             ("fc", "in")]
        ]  # fmt: skip

    def test_preactivation(self):
        (group,) = found(traced(PreActivation)).groups
        assert ("bn", "out") in sides([group])[0]

    def test_concatenation_depthwise_flatten_and_gate(self):
        here = found(traced(Concatenated))
        assert here.unsupported == ()
        assert [(g.name, g.units, g.width) for g in here.groups] == [("one", 4, 2), ("two", 6, 2)]
        two = {(m.layer, m.side): m.index for m in here.groups[1].members}
        assert two["gate", "in"].flatten().tolist() == [4, 5, 6, 7, 8, 9]
        assert two["depthwise", "out"].tolist() == [[2 * i, 2 * i + 1] for i in range(4, 10)]
        assert two["fc", "in"][0].tolist() == list(range(8 * 64, 10 * 64))
        assert here.read["fc"] == (1280,)
        assert here.positions == {"one": 64, "two": 64, "gate": 64, "depthwise": 64, "fc": 1}

    @pytest.mark.parametrize(
        ("forward", "name"),
        [
            (lambda x: x.softmax(1), "softmax"),
            (lambda x: x.view(-1, 8, 8, 8), "view"),
            (lambda x: x.roll(1, 1), "roll"),
            (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), "cat"),
            (lambda x: x.transpose(1, 2), "transpose"),
            (lambda x: x - x.mean(1, keepdim=True), "mean"),
        ],
    )
    def test_what_is_not_understood_pins_its_channels(self, forward, name):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)
                self.conv3, self.conv4 = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1)

            def forward(self, x):
                x = self.conv1(x)
                return (self.conv4(self.conv2(x)) + self.conv3(forward(x))).mean((2, 3))

        here = found(fx.symbolic_trace(Net()))
        assert [group.name for group in here.groups] == ["conv2"]
        assert len(here.unsupported) == 1
        assert name in here.unsupported[0]

    def test_a_slice_keeps_what_it_takes(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv1 = nn.Conv2d(3, 16, 1)
                self.conv2, self.conv3 = nn.Conv2d(4, 4, 1), nn.Conv2d(16, 4, 1)

            def forward(self, x):
                x = self.conv1(x)
                return (self.conv2(x[:, :4]) + self.conv3(x)).mean((2, 3))

        (group,) = found(fx.symbolic_trace(Net())).groups
        assert group.members[0].index.min() >= 4

    @pytest.mark.parametrize(
        ("pool", "columns", "name"),
        [
            (lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), (1, 2)).permute(0, 3, 1, 2), 8, "permu"),
            (lambda x: F.max_pool2d(F.pixel_shuffle(x, 2), 2), 4, "pixel_shuffle"),
            (
                lambda x: F.adaptive_max_pool2d(x.transpose(1, 3), (8, 1)).transpose(1, 3),
                1,
                "trans",
            ),
            (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 16, "max_pool2d"),
        ],
    )
    def test_a_max_pool_over_several_channels_pins_them(self, pool, columns, name):
        here = found(fx.symbolic_trace(Pooled(pool, columns)))
        assert [group.name for group in here.groups] == ["conv2"]
        assert name in here.unsupported[0]

    @pytest.mark.parametrize(
        "pool",
        [
            lambda x: F.max_pool2d(x, 2),
            lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2),
            lambda x: F.adaptive_max_pool2d(x, (1, 2)),
        ],
    )
    def test_a_max_pool_over_places_pins_nothing(self, pool):
        here = found(fx.symbolic_trace(Pooled(pool, 16)))
        assert [(group.name, group.units) for group in here.groups] == [("conv1", 16), ("conv2", 4)]
        assert here.unsupported == ()

    def test_what_no_layer_reads_stays(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
                self.unread, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

            def forward(self, x):
                self.norm(self.unread(x))
                return self.conv2(self.conv1(x)).mean((2, 3))

        assert [group.name for group in found(fx.symbolic_trace(Net())).groups] == ["conv1"]

    def test_the_network_stays_as_it_is(self):
        model = traced(Residual).train()
        model.bn2.eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found(model)
        assert model.training
        assert not model.bn2.training
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("quantization", [FakeQuantization, LearnedSteps])
def test_fake_quantizers_of_any_kind_pin_nothing(quantization):
    model = traced(Residual)
    dense = found(model)
    attach(model, quantization(127))
    quantized = found(model)
    assert quantized.unsupported == ()
    assert sides(quantized.groups) == sides(dense.groups)


@pytest.mark.parametrize("value", [3.0, 20.0, 300.0, 1e9])
def test_the_value_of_a_constant_is_no_channel(value):
    class Scaled(odd_nets.Odd):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(value))

        def forward(self, x):
            return super().forward(x) * self.scale

    groups = found(trace(Scaled(), "scaled", (3, 8, 8))).groups
    assert sorted(group.units for group in groups) == [16, 24]
