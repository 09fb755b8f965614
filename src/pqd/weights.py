"""Weights from files: found in whatever form they were saved, checked, and put into a network.

Nothing in a file is run: safetensors hold tensors alone, and of pickles torch reads no more than
tensors and plain containers.
"""

import argparse
import logging
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.errors import UserError, nearest, one_line

WEIGHTS = "model.safetensors"  # of a network that pqd saved, in its folder

_KEYS = ("state_dict", "model", "model_state_dict", "model_ema")  # the first that is there
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")  # of wrappers around the network
_COUNTER = "num_batches_tracked"  # unused in evaluation; files before torch 0.4.1 lack it
_STORED = ".parametrizations.weight.original"
_NO_VARIANCE = 1e-8  # a thousandth of what batch norms add to a variance
_SHOWN = 2  # names of each kind in a message

log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts the weights of a file into a network of the same names and shapes.

    Args:
        model: changed in place.
        path: see `read_state`.

    Raises:
        UserError: see `read_state`; tensors are missing, unknown or of another shape; or they
            hold values that no trained network has.
    """
    state, wanted = _read_for(model, path)
    _put(model, path, state, wanted)


def load_checkpoint(model: fx.GraphModule, path: Path, *, new_head: bool) -> None:
    """Puts the weights of a user's own dense network into a traced backbone.

    Args:
        model: changed in place.
        path: see `read_state`.
        new_head: leaves the classifier, the last layer called, as it is. Modules that the file
            has and the network lacks are then left out, too: another network's classifier.

    Raises:
        UserError: see `load_weights`.
    """
    state, wanted = _read_for(model, path)
    modules = dict(model.named_modules())
    called = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    layers = [name for name in called if isinstance(modules[name], nn.Conv2d | nn.Linear)]
    head, kept = f"{layers[-1]}.", {name.partition(".")[0] for name in wanted}
    body = {n: t for n, t in wanted.items() if not n.startswith(head)}
    of_body = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(head) and name.partition(".")[0] in kept
    }
    if new_head:
        state, wanted = of_body, body
    elif _misfits(state, wanted) and not _misfits(of_body, body):
        raise UserError(
            f"checkpoint {path} has another classifier: {_misfits(state, wanted)}; "
            f"baseline.new_head=true trains {layers[-1]} anew"
        )
    _put(model, path, state, wanted)


def _read_for(model: nn.Module, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors of a file, by the network's names for them, and those of the network."""
    state, wanted = read_state(path), model.state_dict()
    prefix = _wrapper(state, wanted)
    if outside := [name for name in state if not name.startswith(prefix)]:
        log.info("checkpoint %s: left out, as outside of the network: %s", path, _listed(outside))
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    # A file of the network's own has the weights that are computed from others there.
    stored = {name.replace(_STORED, ".weight"): name for name in wanted}
    return {stored.get(name, name): tensor for name, tensor in inside.items()}, wanted


def _put(
    model: nn.Module, path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    if problems := _misfits(state, wanted):
        raise UserError(f"checkpoint {path} does not fit the backbone: {problems}")
    found = {name: tensor for name, tensor in state.items() if name in wanted}
    for name, tensor in found.items():
        _check_values(path, name, tensor, wanted[name])
    model.load_state_dict(found, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a network by name.

    Args:
        path: a .safetensors file, the folder of a network saved by pqd, or any other file as
            written by `torch.save`: a state dict, or a dict that holds one.

    Raises:
        UserError: the file cannot be read, or holds no state dict or more than tensors.
    """
    path = path / WEIGHTS if path.is_dir() else path
    try:
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError:
        raise UserError(f"checkpoint {path} does not exist or cannot be read") from None
    state = _state_dict(found, path)
    return {name: tensor.to_dense() for name, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"checkpoint {path} is not a safetensors file ({error}); "
            "write one with safetensors.torch.save_file(model.state_dict(), path)"
        ) from None


def _read_pickle(path: Path) -> Any:
    advice = "save the weights alone: torch.save(model.state_dict(), path)"
    try:
        # The arguments of a training script lie beside the weights that torchvision and timm save.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's reader fails in many ways on what is no checkpoint
        text = str(error)
        if "TorchScript" in text:
            raise UserError(f"checkpoint {path} is a TorchScript program; {advice}") from None
        if named := re.search(r"GLOBAL ([\w.]+)", text):
            raise UserError(
                f"checkpoint {path} holds more than tensors ({named[1]}), and to read that would "
                f"run code from the file; {advice}"
            ) from None
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error)[:80]})"
        raise UserError(
            f"checkpoint {path} is no file of torch.save, or is damaged{reason}; {advice}"
        ) from None


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """Returns the state dict that a file holds: under a usual key, at its top, or under another."""
    if not isinstance(found, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(found).__name__}, no state dict")
    if usual := _under_keys(found):
        return usual
    # Figures may be tensors, too, as may parts of a state dict lie deeper: most are weights.
    top = _tensors(found)
    below = [state for v in found.values() if (state := _under_keys(v) or _tensors(v))]
    if len(top) > max(map(len, below), default=0):
        return top
    if len(below) == 1:
        return below[0]
    keys = ", ".join(map(str, found)) or "none"
    raise UserError(
        f"checkpoint {path} holds no state dict under {', '.join(_KEYS)}; its keys: {keys}"
    )


def _under_keys(found: Any) -> dict[str, Tensor]:
    """Returns the tensors under the first usual key that has any, however deep those keys nest."""
    if not isinstance(found, Mapping):
        return {}
    states = (_under_keys(found.get(key)) or _tensors(found.get(key)) for key in _KEYS)
    return next(filter(None, states), {})


def _tensors(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _wrapper(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Returns the prefix of wrappers to take off: that with which most names fit.

    What is outside of the wrapper (the weights of a loss, say) is no part of the network.
    """
    prefixes, whole = [""], ""
    while more := next((p for p in _PREFIXES if any(n.startswith(whole + p) for n in state)), ""):
        whole += more
        prefixes.append(whole)
    return max(prefixes, key=lambda prefix: sum(prefix + name in state for name in wanted))


def _misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Says which tensors do not fit; empty where all do."""
    wrong = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    extra, absent = (
        [name for name in names if name not in others and not name.endswith(_COUNTER)]
        for names, others in ((found, wanted), (wanted, found))
    )
    missing = [f"{name} is missing{_near(name, extra)}" for name in absent]
    unknown = [f"{name} is unknown{_near(name, absent)}" for name in extra]
    return "; ".join(_listed(items) for items in (wrong, missing, unknown) if items)


def _near(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f" (nearest: {near[0]})" if near else ""


def _listed(items: list[str]) -> str:
    more = f" (and {len(items) - _SHOWN} more)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _check_values(path: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Refuses what no trained network holds.

    Raises:
        UserError: the message names the tensor.
    """
    what = f"checkpoint {path}: {name}"
    if name.endswith(_COUNTER):
        return
    if tensor.is_floating_point() != wanted.is_floating_point():
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, wanted)]
        raise UserError(f"{what} holds {kinds[0]} numbers, where {kinds[1]} is expected")
    if not tensor.is_floating_point():
        return
    tensor = tensor.float()  # a CPU knows little of numbers of 8 bits
    if bad := int((~tensor.isfinite()).sum()):
        raise UserError(f"{what} holds {bad} values (of {tensor.numel()}) that are not finite")
    if name.endswith("running_var") and tensor.numel():
        if tensor.min() < 0:
            raise UserError(f"{what} holds a negative variance ({tensor.min().item():.3g})")
        if tensor.max() < _NO_VARIANCE:
            log.warning("%s: all variances are 0, as of a layer that was never trained", what)
