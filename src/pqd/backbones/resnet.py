"""Residual networks (He et al. 2015, arXiv 1512.03385), made of torchvision's blocks."""

from torch import Tensor, nn
from torchvision.models import resnet as tv

from pqd.backbones.init import init_he


def resnet18(classes: int, channels: int, image_size: int) -> nn.Module:
    """ResNet-18 with a CIFAR stem: 3x3 convolution with stride 1, no max-pool.

    11,173,962 parameters with 10 classes and 3 channels.
    """
    net = tv.resnet18(num_classes=classes)
    net.conv1 = tv.conv3x3(channels, 64)
    net.maxpool = nn.Identity()
    init_he(net)
    return net


def resnet18_imagenet_stem(classes: int, channels: int, image_size: int) -> nn.Module:
    """ResNet-18 as for ImageNet: 7x7 convolution with stride 2, then max-pool.

    11,181,642 parameters (42.65 MiB) with 10 classes and 3 channels.
    """
    net = tv.resnet18(num_classes=classes)
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    init_he(net)
    return net


def resnet8(classes: int, channels: int, image_size: int) -> nn.Module:
    """ResNet-8: as `resnet20`, with one block in each stage.

    78,042 parameters with 10 classes and 3 channels.
    """
    return CifarResNet(blocks=1, classes=classes, channels=channels)


def resnet20(classes: int, channels: int, image_size: int) -> nn.Module:
    """ResNet-20 for CIFAR, section 4.2 of the paper.

    272,474 parameters with 10 classes and 3 channels: shortcuts that change shape are 1x1
    convolutions (the paper's option B), which quantize like every other layer, where option A
    slices and pads.
    """
    return CifarResNet(blocks=3, classes=classes, channels=channels)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int, channels: int):
        """Makes ResNet-(6 n + 2) for n `blocks` in each stage."""
        super().__init__()
        self.conv1 = tv.conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to logits [B, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if inputs != outputs:
        downsample = nn.Sequential(tv.conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    first = tv.BasicBlock(inputs, outputs, stride, downsample)
    return nn.Sequential(first, *(tv.BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
