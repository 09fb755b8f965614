"""Where a convolution's stride goes that oneDNN gets wrong."""

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations


def stride_before_narrow_convolutions(graph: fx.Graph, net: nn.Module) -> None:
    """Takes the stride out of 1x1 convolutions whose weight gradient oneDNN gets wrong.

    In channels_last it writes past its buffer when the channels do not fill a vector: wrong
    gradients or a crash (oneDNN issue 6035). A 1x1 pool before them gives the very same numbers.
    """
    vector = 16  # float32 in AVX-512
    for node in graph.nodes:
        layer = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if (
            isinstance(layer, nn.Conv2d)
            and type_before_parametrizations(layer) is nn.Conv2d
            and layer.kernel_size == (1, 1)
            and layer.stride != (1, 1)
            and layer.padding in ((0, 0), "valid")
            and layer.in_channels < vector
        ):
            path = f"{str(node.target).replace('.', '_')}_stride"
            net.add_module(path, nn.MaxPool2d(1, layer.stride))
            layer.stride = (1, 1)
            with graph.inserting_before(node):
                node.args = (graph.call_module(path, node.args),)
