"""Tiny hand-made networks, and random images for them."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from pqd.backbones.build import BUILDERS, build
from pqd.config import BackboneConfig
from pqd.constraints import attach
from pqd.constraints.bits.allocation import code_max_of
from pqd.constraints.mask import Masks, set_masks
from pqd.constraints.quantization import FakeQuantization
from pqd.data import Batch
from pqd.stages.quantize import calibrate


class Residual(nn.Module):
    """Convolutions with batch norm, a residual add, both kinds of pool, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.average(x).flatten(1))


def tiny(
    classes: int, channels: int, image_size: int, activation: nn.Module | None = None
) -> Residual:
    """The residual network as a backbone: `backbone.builder=nets.tiny`."""
    net = Residual()
    net.relu = activation or net.relu
    net.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
    net.fc = nn.Linear(8, classes)
    return net


def random_slopes(classes: int, channels: int, image_size: int) -> Residual:
    """One that ONNX has no operator for."""
    return tiny(classes, channels, image_size, nn.RReLU())


def like_timms(classes: int, channels: int, image_size: int, pretrained: bool) -> nn.Module:
    """One with an argument that timm would load weights for."""
    width = 6 if pretrained else 4
    layers = {
        "conv1": nn.Conv2d(channels, width, image_size),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(width, classes),
    }
    return nn.Sequential(OrderedDict(layers))


class PreActivation(nn.Module):
    """A batch norm that follows an add, as in a wide residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x + self.conv2(torch.relu(x))
        x = self.conv3(torch.relu(self.bn(x))) + x
        return self.fc(x.mean((2, 3)))


class ReluBeforeSum(nn.Module):
    """Residual adds of branches that end in a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.bn2(self.conv2(x))) + x
        x = torch.relu(self.bn3(self.conv3(x))) + x
        return self.fc(x.mean((2, 3)))


def traced(kind: type[nn.Module], seed: int = 0) -> fx.GraphModule:
    """Returns the network with random weights and batch norms that are far from the identity."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.normal_(module.weight)  # negative scales too
                nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return fx.symbolic_trace(model)


def backbone(name: str, size: int = 32) -> fx.GraphModule:
    """Returns a backbone of pqd or timm with random weights, for ten classes."""
    torch.manual_seed(0)
    return build(BackboneConfig(name if name in BUILDERS else "timm", name), 10, 3, size)


def quantized(
    kind: type[FakeQuantization] = FakeQuantization, bits: int = 8, sparsity: float = 0.0
) -> fx.GraphModule:
    """Returns the residual network, pruned where asked, quantized and calibrated."""
    model = traced(Residual)
    if sparsity:
        attach(model, Masks(["conv1", "conv2", "fc"]))
        set_masks(model, sparsity, "layer")
    attach(model, kind(code_max_of(bits)))
    calibrate(model, [images(16)])
    return model


def images(count: int = 64, size: int = 8, seed: int = 1, channels: int = 3) -> Tensor:
    """Returns random images [count, channels, size, size]."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def batch(of: int = 8, size: int = 8, seed: int = 0) -> Batch:
    """Returns random images of four classes."""
    return Batch(images(of, size, seed), torch.arange(of) % 4, torch.arange(of))


class Batches:
    """Batches of random images, in every epoch others unless they are fixed."""

    def __init__(self, count: int = 3, of: int = 8, size: int = 8, *, fixed: bool = False) -> None:
        self.count, self.of, self.size, self.fixed = count, of, size, fixed

    def __len__(self) -> int:
        return self.count

    def epoch(self, seed: int) -> Iterator[Batch]:
        first = 0 if self.fixed else 10 * seed
        for i in range(self.count):
            yield batch(self.of, self.size, first + i)
