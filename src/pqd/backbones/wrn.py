"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), without dropout."""

from torch import Tensor, nn
from torchvision.models.resnet import conv1x1, conv3x3

from pqd.backbones.init import init_he


def wrn28_10(classes: int, channels: int, image_size: int) -> nn.Module:
    """WRN-28-10: 36,479,194 parameters with 10 classes and 3 channels."""
    return WideResNet(depth=28, width=10, classes=classes, channels=channels)


class WideResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, times the width."""

    def __init__(self, depth: int, width: int, classes: int, channels: int):
        """Makes WRN-depth-width, where depth is 6 n + 4 for n blocks in each stage."""
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16)
        self.layer1 = _stage(16, 16 * width, blocks, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * width, classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to logits [B, classes]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn(x)))))


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions; a 1x1 shortcut reads them too."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        """Maps `inputs` to `outputs` channels; the first convolution has the stride."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = conv1x1(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out = self.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(self.relu(self.bn2(self.conv1(out)))) + skip


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(inputs, outputs, stride)
    return nn.Sequential(
        first, *(PreActivationBlock(outputs, outputs, stride=1) for _ in range(blocks - 1))
    )
