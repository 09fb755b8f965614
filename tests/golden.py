"""Golden losses guard refactorings: the same numbers from commit to commit."""

import pytest
import torch

# Where they were noted. Other kernels sum in another order.
MACHINES = [
    {"torch": "2.13.0", "capability": capability, "cpu": "AMD EPYC"}
    for capability in ("AVX2", "AVX512")
]


def golden(losses, rel):
    """What must be equal to these losses: to the bit where they were noted, else about."""
    flags = getattr(torch.cpu, "get_capabilities", dict)()
    machine = {
        "torch": torch.__version__.partition("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": str(flags.get("cpu_name")),
    }
    return losses if machine in MACHINES else pytest.approx(losses, rel=rel)
