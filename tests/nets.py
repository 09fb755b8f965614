"""Tiny hand-made networks."""

import torch
from torch import Tensor, fx, nn


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


def images(count: int = 64, size: int = 8, seed: int = 1) -> Tensor:
    """Returns random images [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
