"""What training runs on: the device, its precision, and whether to compile for it."""

import contextlib
import ctypes
import sys
from typing import Literal

import torch
from torch import nn

from pqd.errors import UserError, choices

Precision = Literal["fp32", "bf16"]

# `train.compile=auto` compiles a stage of at least so many steps. Compiling costs 15 s (cached on
# disk) to 100 s (cold) on a CPU, where it then saves a tenth of a step in FP32 and nothing in bf16
# (benchmarks/README.md); on a GPU it saves half.
COMPILE_FROM_STEPS = {"cpu": 4000, "cuda": 1000}

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def resolve_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` is the first CUDA device, else the CPU.

    Raises:
        UserError: no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise choices("train.device", name, ("auto", "cpu", "cuda", "cuda:N"))
    if kind == "cuda" and int(index or 0) >= count:
        found = f"only {count} CUDA device(s)" if count else "no CUDA device"
        raise UserError(f"train.device={name}, but this machine has {found}; use auto or cpu")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """What `train.precision` means on `device`; `auto` is bf16 where the hardware computes in it.

    On a CPU that is one with AVX512-BF16 or AMX; others emulate bf16, ten times slower than FP32.
    """
    if name in ("fp32", "bf16"):
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0) or bool(torch.version.hip)
    else:
        # Older versions of torch only have the private probe.
        flags: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
        native = any(flags.get(f) for f in ("avx512_bf16", "amx_bf16")) if flags else probe()
    return "bf16" if native else "fp32"


def resolve_compile(name: str, device: torch.device, precision: Precision, steps: int) -> bool:
    """Whether `train.compile` compiles a stage of so many steps (see `COMPILE_FROM_STEPS`).

    The rule counts steps, not seconds, so that a run's result does not depend on its timing.
    """
    if name == "auto":
        saves = device.type == "cuda" or precision == "fp32"
        return saves and steps >= COMPILE_FROM_STEPS[device.type]
    return name == "true"


def channels_last(model: nn.Module) -> None:
    """Lays tensors [B, C, H, W] of a network out with the channels innermost, in place.

    `nn.Module.to` does so as well, but refuses a network that has a tensor of five dimensions.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed blocks of any size.

    By default it returns those of an activation's size to the kernel, and a step then spends 7 %
    of its time in the page faults of getting them back.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            # Older versions refuse more than 32 MiB.
            if any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25)):
                libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
