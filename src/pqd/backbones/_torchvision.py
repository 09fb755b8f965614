"""Makes torchvision importable; import this before the first import of torchvision or timm.

torchvision's compiled operators do not load when it was built for another torch, as when its
default wheel (CUDA) meets a CPU torch. Its import then fails while attaching to two box operators
that nobody here uses. Declaring the two lets the rest, models, transforms and data sets, work.
"""

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _OPERATORS = torch.library.Library("torchvision", "DEF")  # they live as long as this object
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
