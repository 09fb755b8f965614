"""Which device, precision and compilation a setting stands for on a machine."""

import pytest
import torch
from torch import nn

from pqd import devices
from pqd.errors import UserError


def test_resolve_device():
    assert devices.resolve_device("cpu").type == "cpu"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert devices.resolve_device("auto").type == expected
    for name in ("gpu", "cuda:x", "cpu:0", ""):
        with pytest.raises(UserError, match=r"train\.device=.* is unknown.*cuda:N"):
            devices.resolve_device(name)
    with pytest.raises(UserError, match=r"train\.device=cuda:99, but this machine has"):
        devices.resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "bf16"),  # torch 2.11 has the private probe alone
    ],
)
def test_precision_auto_on_a_cpu_follows_its_capabilities(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    cpu = torch.device("cpu")
    assert devices.resolve_precision("auto", cpu) == expected
    assert devices.resolve_precision("bf16", cpu) == "bf16"
    assert devices.resolve_precision("fp32", cpu) == "fp32"


def test_compile_auto_counts_steps():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not devices.resolve_compile("auto", cpu, "fp32", 3999)
    assert devices.resolve_compile("auto", cpu, "fp32", 4000)
    assert not devices.resolve_compile("auto", cpu, "bf16", 10**6)
    assert not devices.resolve_compile("auto", cuda, "bf16", 999)
    assert devices.resolve_compile("auto", cuda, "bf16", 1000)
    assert devices.resolve_compile("true", cpu, "bf16", 1)
    assert not devices.resolve_compile("false", cuda, "fp32", 10**6)


def test_channels_last_of_a_network_with_a_tensor_of_five_dimensions():
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    network.register_buffer("five", torch.zeros(1, 2, 3, 4, 5))
    devices.channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network.five.is_contiguous()
