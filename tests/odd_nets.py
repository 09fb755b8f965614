"""Tiny networks of kinds that runtimes or quantizers once got wrong, [B, 3, 8, 8] to 10 logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Odd(nn.Module):
    """What all of them begin and end with."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.last = block(16, 24, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.last(self.middle(self.stem(x)))).flatten(1))

    def middle(self, x: Tensor) -> Tensor:
        return x


class Shuffle(Odd):
    """ShuffleNet's unit, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([block(8, 8), block(8, 8)])

    def middle(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, branch(changed)), 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return x


class Ghost(Odd):
    """GhostNet's module: half of the channels from the others, and a slice that takes them all."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = block(16, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, torch.relu(self.cheap(primary))], 1)[:, :16] + x


class Mixed(Odd):
    """Joins a ReLU6's values with some of both signs, which a sum reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = nn.Conv2d(16, 8, 3, padding=1)
        self.signed = nn.Conv2d(16, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        signed = self.signed(x)
        x = torch.cat(tensors=[F.relu6(self.positive(x)), signed], dim=1)
        return torch.relu(self.other(signed) + x)


class Dense(Odd):
    """DenseNet's block: what is joined is normalized, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
        self.second = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 8, 3, padding=1))
        self.transition = nn.Conv2d(32, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        features = [x]
        features.append(self.first(torch.cat(features, 1)))
        features.append(self.second(torch.cat(features, 1)))
        return torch.relu(self.transition(torch.cat(features, 1)))


class PreActivation(Odd):
    """Batch norms behind sums, as in wide residual networks; one gain is below 0, one is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
            )
            for _ in range(2)
        )
        self.norm = nn.BatchNorm2d(16)
        for norm in (self.branches[1][0], self.norm):
            norm.weight.data[:2] = torch.tensor([-0.7, 0.0])

    def middle(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return torch.relu(self.norm(x))


class Split(Odd):
    """Res2Net's hierarchy of splits, and slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(4, 4), block(4, 4)

    def middle(self, x: Tensor) -> Tensor:
        parts = torch.split(x, [4, 4, 8], 1)
        first = self.first(parts[0])
        second = self.second(parts[1] + first)
        return torch.cat([first, second, parts[2][:, 4:], parts[2][:, :4]], 1)


class Constants(Odd):
    """Sums, products and joins with parameters and buffers; what is read twice by a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(1, 16, 1, 1))
        self.gain = nn.Parameter(torch.rand(1, 16, 1, 1) + 0.5)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def middle(self, x: Tensor) -> Tensor:
        x = torch.add(self.shift, x) * self.gain + self.gain.abs()
        return x + torch.zeros_like(x)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift[:, :3]) * self.temperature


class GeM(Odd):
    """Generalized-mean pooling: the root's slope at zero is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stem(x)).clamp(min=1e-6).pow(self.power)
        return self.fc(F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1 / self.power).flatten(1))


class LogSumExp(Odd):
    """A sum between exponentials and a logarithm, and a logarithm beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.log((x - 20).exp() + (-x - 20).exp()) + 20  # more than UINT8 tells from zero
        x = F.softplus(x) + 1e-6
        return torch.log(x) + self.side(x)


class Pads(Odd):
    """Zeros around images, as TensorFlow's "same" padding puts them, and behind channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 12, 3, 2), nn.ReLU())
        self.second = nn.Conv2d(16, 16, 2)

    def middle(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 2, 2))
        return torch.relu(self.second(F.pad(x, (1, 0, 1, 0), "constant", 0)))


class ConstantParts(Odd):
    """Coordinates joined to the channels of a signed value, as CoordConv does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.linspace(-2, 3, 128).view(1, 2, 8, 8))
        self.signed = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(18, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.signed(x)
        x = torch.cat([self.places.expand_as(x[:, :2]), x], 1)
        return torch.relu(self.second(x))


class ConstantPads(Odd):
    """Pads with other values than zero, around images and behind channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(20, 16, 3, padding=1)
        self.pad = nn.ConstantPad2d(1, -0.5)
        self.second = nn.Conv2d(16, 16, 3)

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(F.pad(x, (0, 0, 0, 0, 2, 2), value=0.5))
        return torch.relu(self.second(self.pad(x)))


class Keywords(Odd):
    """Calls with keywords, and a shape that is read between a convolution and its batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem[0](input=x)
        batch = x.size(0)
        x = self.last(F.relu(input=self.stem[1](input=x)))
        x = F.adaptive_avg_pool2d(input=x, output_size=1)
        return self.fc(input=x.reshape(batch, 24))


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns images [count, 3, 8, 8], a pattern of their class in noise, and classes [count]."""
    patterns = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(77))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 10, (count,), generator=generator)
    return patterns[classes] + torch.randn(count, 3, 8, 8, generator=generator), classes


def train(model: nn.Module, steps: int) -> None:
    """Trains in place with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        images, classes = data(64, 1000 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()


def trained(kind: type[nn.Module]) -> fx.GraphModule:
    """Returns a traced network after 40 steps, so that its classes are worth comparing."""
    torch.manual_seed(0)
    model = fx.symbolic_trace(kind())
    train(model, 40)
    return model


KINDS = (
    Shuffle,
    Ghost,
    Mixed,
    Dense,
    PreActivation,
    Split,
    Constants,
    GeM,
    LogSumExp,
    Pads,
    ConstantParts,
    ConstantPads,
    Keywords,
)
