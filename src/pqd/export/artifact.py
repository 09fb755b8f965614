"""The artifact of a run and its figures: what is deployed is what is measured."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqd import measure, training
from pqd.config import RuntimeConfig
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import masks, sparsity
from pqd.constraints.network import RECIPE, WEIGHTS, load_network
from pqd.data import Dataset, eval_batches
from pqd.export.onnx_file import write_onnx
from pqd.export.package import pack

VERSION = 1  # raise it when a code change alters a file or a figure
BATCH_SIZE = 250
MODEL, PACKAGE, DENSE, PRUNED = "model.onnx", "model.pqd", "dense.onnx", "pruned.onnx"


@dataclass(frozen=True)
class Subject:
    """What an artifact is made of."""

    network: Path  # folder of the compressed network
    dense: Path  # folder of the dense baseline
    dataset: Dataset
    runtime: RuntimeConfig
    order: str
    backbone: str

    def identity(self) -> dict[str, Any]:
        """Returns what, besides the two networks, the files and figures depend on."""
        return {
            "version": VERSION,
            "dataset": self.dataset.fingerprint,
            "runtime": asdict(self.runtime),
            "order": self.order,
            "machine": measure.machine(),
        }


def make(subject: Subject, folder: Path) -> dict[str, Any]:
    """Writes the files of an artifact and returns its figures (`final` in `result.json`).

    `model.onnx` is the compressed network and `model.pqd` its package; `dense.onnx` is the
    baseline and `pruned.onnx` (where the order prunes and quantizes) the sparse network in FP32,
    both for comparison in the same runtime; `model.safetensors` and `recipe.json` rebuild the
    network in torch.

    Args:
        subject: the networks, the images and the runtimes to measure with.
        folder: exists, and is empty.
    """
    dataset = subject.dataset
    _, height, width, channels = dataset.test.images.shape
    shape = (channels, height, width)
    network = load_network(subject.network)
    quantized = bool(activation_fake_quants(network))
    networks = {"dense": load_network(subject.dense), "int8" if quantized else "fp32": network}
    files = {"dense": folder / DENSE, "int8" if quantized else "fp32": folder / MODEL}
    if quantized and masks(network):
        networks["pruned"] = load_network(subject.network, quantized=False)
        files["pruned"] = folder / PRUNED
    metadata = {
        "classes": dataset.classes,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "image_size": height,
        "channels": channels,
        "backbone": subject.backbone,
        "order": subject.order,
    }
    for kind, path in files.items():
        write_onnx(networks[kind], path, shape, metadata)
    pack(folder / MODEL, folder / PACKAGE)
    for name in (WEIGHTS, RECIPE):
        shutil.copyfile(subject.network / name, folder / name)
    rows = measure.latency(files, subject.runtime, shape, modules=networks)
    return (
        _accuracies(subject, network, folder)
        | {
            "sparsity": sparsity(network),
            "parameters": sum(p.numel() for p in network.parameters()),
            "macs": measure.macs(folder / DENSE),
            "sizes": measure.sizes(
                folder / MODEL, folder / PACKAGE, folder / DENSE, subject.dense / WEIGHTS
            ),
        }
        | {"latency": rows}
    )


def _accuracies(subject: Subject, network: torch.nn.Module, folder: Path) -> dict[str, Any]:
    """Top-1 accuracies over the whole test split, in %."""
    dataset = subject.dataset
    labels = dataset.test.labels
    by_runtime = {
        runtime: measure.predictions(folder / MODEL, _images(dataset), runtime)
        for runtime in measure.available(subject.runtime.names)
        if not runtime.startswith("torch")
    }
    deployed = by_runtime.setdefault(
        "onnxruntime", measure.predictions(folder / MODEL, _images(dataset))
    )
    own = training.predict(network, eval_batches(dataset.test, dataset, BATCH_SIZE, _CPU))
    dense = measure.predictions(folder / DENSE, _images(dataset))
    return {
        "accuracy": measure.top1(deployed, labels),
        "network_accuracy": measure.top1(own, labels),
        "agreement": measure.top1(deployed, own),
        "dense_accuracy": measure.top1(dense, labels),
        "accuracy_by_runtime": {
            name: measure.top1(predicted, labels) for name, predicted in by_runtime.items()
        },
    }


_CPU = torch.device("cpu")


def _images(dataset: Dataset) -> Iterator[Tensor]:
    return (images for images, _ in eval_batches(dataset.test, dataset, BATCH_SIZE, _CPU))
