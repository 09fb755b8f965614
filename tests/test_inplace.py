"""What is written in place is what later readers get, in the traced network as in the eager one."""

import copy
import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from pqd.errors import UserError
from pqd.graph.inplace import OPERATORS
from pqd.graph.trace import trace


class Net(nn.Module):
    """Layers, and what a test does with them."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((1, 4, 1, 1), 2.0))
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


@torch.no_grad()
def check(forward):
    """The traced network computes what the eager one does, and where nothing shares memory, too."""
    torch.manual_seed(0)
    net = Net(forward)
    net.drop.p = 0.0
    eager, x = copy.deepcopy(net), torch.randn(2, 3, 8, 8)
    traced = trace(net, "net", (3, 8, 8))
    for mode in (True, False):
        want = eager.train(mode)(x.clone())
        assert torch.equal(traced.train(mode)(x.clone()), want)
        assert torch.equal(Copying(traced).run(x.clone()), want)
    assert not any(n.target in INPLACE for n in traced.graph.nodes)
    return traced


class Copying(fx.Interpreter):
    """Gives every operation values of its own to write to, as a fake-quantizer before it does."""

    def run_node(self, n):
        self.env = {node: fx.node.map_aggregate(v, cloned) for node, v in self.env.items()}
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n):
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return fx.node.map_aggregate((args, kwargs), cloned)


def cloned(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


INPLACE = {getattr(operator, f"i{name}") for name in OPERATORS}


def residual(self, x):
    x = self.a(x)
    idt = x
    x += self.b(F.relu(x))
    return F.relu(x) + idt


def statistics(self, x):
    y = self.a(x)
    skip = y
    y += x.mean(1, keepdim=True)
    return torch.cat([y, skip], 1)


def behind_a_buffer(self, x):
    x = self.a(x) * self.scale
    idt = x
    x -= self.b(x)
    return x * idt


def twice(self, x):
    x = self.a(x)
    idt = x
    early = self.b(x)
    x += 1
    x *= 3
    return torch.cat([x, idt, early], 1)


def relu_layer(self, x):
    x = self.a(x)
    return self.b(self.relu(x)) + x


def relu_function(self, x):
    x = self.a(x)
    F.relu(x, inplace=True)
    return self.b(x)


def method(self, x):
    x = self.a(x)
    same = self.drop(x)
    x.add_(self.b(x)).mul_(2)
    return same - x


def view_of_all(self, x):
    x = self.a(x).flatten(1)
    idt = x
    x += 1
    return x * idt


def other_half(self, x):
    one, two = self.a(x).chunk(2, 1)
    return torch.cat([self.relu(one), two], 1)


def half_of_a_whole(self, x):
    x = self.a(x)
    parts = x.split(2, 1)
    one = parts[0]
    one += 1
    return torch.cat([one, parts[1], x[:, 2:]], 1)


def view_after(self, x):
    x = self.a(x)
    x += 1
    return x.flatten(1) * x.reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    "forward",
    [residual, statistics, behind_a_buffer, twice, relu_layer, relu_function, method, view_of_all,
     other_half, half_of_a_whole, view_after],
)  # fmt: skip
def test_later_readers_get_what_was_written(forward):
    check(forward)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "pow"])
def test_every_operator(name):
    def forward(self, x):
        x = self.a(x).abs()
        idt = x
        x = getattr(operator, f"i{name}")(x, self.b(idt).abs())
        return x + 2 * idt

    targets = [node.target for node in check(forward).graph.nodes]
    assert targets.count(getattr(operator, name)) > 0


def test_names_are_those_of_new_values():
    """Fake-quantizers of saved networks are named after them."""
    assert "add" in [node.name for node in check(residual).graph.nodes]


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda x: x[:, :2].add_(1), lambda x, before: x),
        (lambda x: x.add_(1), lambda x, before: before),
        (lambda x: operator.isub(x[:, 1:3], 1), lambda x, before: x[:, 2:]),
    ],
)
def test_what_another_view_reads_later_is_refused(write, read):
    def written(self, x):
        x = self.a(x)
        before = x.flatten(2)
        write(x)
        return read(x, before).sum()

    with pytest.raises(UserError, match=r"^backbone.name=net cannot .* in place what .* later"):
        trace(Net(written), "net", (3, 8, 8))


def test_in_place_in_training_alone_is_refused():
    def forward(self, x):
        x = self.a(x)
        return F.dropout(x, 0.5, self.training, inplace=True) + x

    with pytest.raises(UserError, match="differs between training and evaluation"):
        trace(Net(forward), "net", (3, 8, 8))
