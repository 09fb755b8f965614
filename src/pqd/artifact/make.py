"""Makes the files of an artifact, and finds out what they are worth."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pqd import measure, training
from pqd.artifact.subject import DENSE_MODEL, MODEL, PACKAGE, PRUNED_MODEL, Subject
from pqd.constraints import constraints
from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.mask import sparsity
from pqd.networks import RECIPE, WEIGHTS, load_network
from pqd.package import pack

PREDICTIONS = "predictions.npy"  # the network's own classes of the test images, int64 [N]


def make_dense(subject: Subject, folder: Path) -> dict[str, Any]:
    """Writes `dense.onnx`, the FP32 baseline, and its network beside it.

    Args:
        subject: the dense network.
        folder: exists.

    Returns:
        `dense_accuracy` and `dense_balanced_accuracy` over the test split and `dense_agreement`
        with the network, in %, and `macs` per image.
    """
    network = load_network(subject.folder)
    subject.write(network, folder / DENSE_MODEL)
    _copy_network(subject, folder)
    predicted = subject.predictions(folder / DENSE_MODEL)
    return {
        "dense_accuracy": subject.accuracy(predicted),
        "dense_balanced_accuracy": subject.balanced(predicted),
        "dense_agreement": measure.top1(predicted, training.predict(network, subject.batches())),
        "macs": measure.macs(folder / DENSE_MODEL),
    }


def make(subject: Subject, dense: Path, folder: Path) -> dict[str, Any]:
    """Writes the files of an artifact and finds out what they are worth.

    `model.onnx` is the compressed network and `model.pqd` its package; `pruned.onnx` (where the
    order prunes and quantizes) is the sparse network in FP32, for comparison in the same runtime;
    `model.safetensors` and `recipe.json` rebuild the network in torch.

    Args:
        subject: the compressed network.
        dense: a folder filled by `make_dense`.
        folder: exists.

    Returns:
        Accuracies, agreement, sparsity and sizes, as in `pqd.result.Final`.
    """
    network = load_network(subject.folder)
    subject.write(network, folder / MODEL)
    in_float = [constraint.in_float for constraint in constraints(network)]
    if any(in_float) and not all(in_float):
        subject.write(load_network(subject.folder, quantized=False), folder / PRUNED_MODEL)
    pack(folder / MODEL, folder / PACKAGE)
    _copy_network(subject, folder)
    own = training.predict(network, subject.batches())
    np.save(folder / PREDICTIONS, own.numpy())
    predicted = subject.predictions(folder / MODEL)
    return {
        "accuracy": subject.accuracy(predicted),
        "balanced_accuracy": subject.balanced(predicted),
        "network_accuracy": subject.accuracy(own),
        "agreement": measure.top1(predicted, own),
        "sparsity": sparsity(network),
        "parameters": _parameters(network),
        "sizes": measure.sizes(
            folder / MODEL, folder / PACKAGE, dense / DENSE_MODEL, dense / WEIGHTS
        ),
        "dataset": subject.dataset.fingerprint,
    }


def _parameters(network: nn.Module) -> int:
    """Counts what the network itself was trained in: steps of quantizers are none of it."""
    own = (m for m in network.modules() if not isinstance(m, WeightFakeQuant | ActivationFakeQuant))
    return sum(p.numel() for module in own for p in module.parameters(recurse=False))


def _copy_network(subject: Subject, folder: Path) -> None:
    for name in (WEIGHTS, RECIPE):
        shutil.copyfile(subject.folder / name, folder / name)
