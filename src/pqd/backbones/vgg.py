"""VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) as it is used on CIFAR."""

from torch import nn
from torchvision.models import vgg as tv

from pqd.backbones.init import init_he


def vgg16_bn(classes: int, channels: int, image_size: int) -> nn.Module:
    """VGG-16 with batch norm and one linear layer from 512 to classes.

    14,728,266 parameters with 10 classes and 3 channels. The five max-pools need 32x32 pixels; on
    smaller images those that would meet a 1x1 map are left out, which changes no parameter's name.
    """
    features = tv.make_layers(tv.cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    size = image_size
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            if size == 1:
                features[i] = nn.Identity()
            size = max(size // 2, 1)
    net = nn.Sequential()
    net.add_module("features", features)
    if size > 1:
        net.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(512, classes))
    init_he(net)
    return net
