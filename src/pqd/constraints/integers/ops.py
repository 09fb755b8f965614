"""Operators of the deployed network, and their ONNX form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("pqd::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear followed by DequantizeLinear.

    Args:
        x: any shape, float32.
        scale: [], float32.
        zero_point: [], uint8 or int8, as the codes are.
    """
    kind = torch.iinfo(zero_point.dtype)
    codes = torch.round(x / scale).add_(zero_point).clamp_(kind.min, kind.max)
    return codes.sub_(zero_point).mul_(scale)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("pqd::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """DequantizeLinear along axis 0.

    Args:
        codes: [K, ...], int8 or int32.
        scale: [K], float32.
        zero_point: [K] zeros of the type of `codes`. ONNX does not ask for them, but without them
            ONNX Runtime runs a Gemm in float, and its converter to ORT files fails.
    """
    return codes.float() * scale.view(-1, *[1] * (codes.ndim - 1))


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("pqd::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool, `[B, C, H, W]` to `[B, C, 1, 1]`.

    torch exports its pooling as ReduceMean, which no runtime computes on codes.
    """
    return x.mean((2, 3), keepdim=True)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], 1, 1)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the translation table for `torch.onnx.export(custom_translation_table=...)`."""
    from onnxscript import opset18 as op

    def onnx_quantize_dequantize(x, scale, zero_point):  # type: ignore[no-untyped-def]
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def onnx_dequantize(codes, scale, zero_point):  # type: ignore[no-untyped-def]
        return op.DequantizeLinear(codes, scale, zero_point, axis=0)

    def onnx_global_average_pool(x):  # type: ignore[no-untyped-def]
        return op.GlobalAveragePool(x)

    return {
        torch.ops.pqd.quantize_dequantize.default: onnx_quantize_dequantize,
        torch.ops.pqd.dequantize.default: onnx_dequantize,
        torch.ops.pqd.global_average_pool.default: onnx_global_average_pool,
    }
