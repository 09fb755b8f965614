"""The artifact of a run and its figures: what is deployed is what is measured."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pqd import measure, training
from pqd.config import RuntimeConfig
from pqd.constraints import constraints
from pqd.constraints.mask import sparsity
from pqd.data import Dataset, eval_batches
from pqd.export.onnx_file import write_onnx
from pqd.networks import RECIPE, WEIGHTS, load_network
from pqd.package import pack
from pqd.result import DENSE, FP32, INT8, PRUNED, now
from pqd.runtimes import REFERENCE, available, get

VERSION = 5  # raise it when a code change alters a file or a figure
BATCH_SIZE = 250
MODEL, PACKAGE = "model.onnx", "model.pqd"
DENSE_MODEL, PRUNED_MODEL = "dense.onnx", "pruned.onnx"

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A network to export: its folder, the images it is for, and what it is called."""

    folder: Path
    dataset: Dataset
    backbone: str
    order: str

    def identity(self, runtimes: Iterable[str]) -> dict[str, Any]:
        """Returns what, besides the network, files and figures depend on; goes into a hash.

        Args:
            runtimes: what is measured in; the versions of others do not count.
        """
        machine = measure.machine()
        used = {"torch", "onnx", REFERENCE, *runtimes}
        versions = {name: v for name, v in machine["versions"].items() if name in used}
        return {
            "version": VERSION,
            "dataset": self.dataset.fingerprint,
            "order": self.order,
            "machine": machine | {"versions": versions},
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image: (C, H, W)."""
        _, height, width, channels = self.dataset.test.images.shape
        return channels, height, width

    def write(self, network: fx.GraphModule, path: Path) -> None:
        """Writes a network as ONNX with all that is needed to classify images with it."""
        metadata = {
            "classes": self.dataset.classes,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "image_size": self.shape[1],
            "channels": self.shape[0],
            "backbone": self.backbone,
            "order": self.order,
        }
        write_onnx(network, path, self.shape, metadata)

    def accuracy(self, predicted: Any) -> float:
        """Returns the top-1 accuracy, in %, of predictions [N] over the whole test split."""
        return measure.top1(predicted, self.dataset.test.labels)

    def predictions(self, model: Path, runtime: str = REFERENCE) -> Any:
        """Returns the classes, int64 [N], that an ONNX file gives the test images."""
        return measure.predictions(model, (images for images, _ in self.batches()), runtime)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test images [B, C, H, W] and their labels [B]."""
        return eval_batches(self.dataset.test, self.dataset, BATCH_SIZE, _CPU)


def make_dense(subject: Subject, folder: Path) -> dict[str, Any]:
    """Writes `dense.onnx`, the FP32 baseline, and its network beside it.

    Args:
        subject: the dense network.
        folder: exists.

    Returns:
        `dense_accuracy` over the test split in %, and `macs` per image.
    """
    subject.write(load_network(subject.folder), folder / DENSE_MODEL)
    _copy_network(subject, folder)
    return {
        "dense_accuracy": subject.accuracy(subject.predictions(folder / DENSE_MODEL)),
        "macs": measure.macs(folder / DENSE_MODEL),
    }


def make(subject: Subject, dense: Path, runtime: RuntimeConfig, folder: Path) -> dict[str, Any]:
    """Writes the files of an artifact and measures them.

    `model.onnx` is the compressed network and `model.pqd` its package; `pruned.onnx` (where the
    order prunes and quantizes) is the sparse network in FP32, for comparison in the same runtime;
    `model.safetensors` and `recipe.json` rebuild the network in torch.

    Args:
        subject: the compressed network.
        dense: a folder filled by `make_dense`.
        runtime: what to measure in.
        folder: exists.

    Returns:
        The figures, as `final` in `result.json` but for those of `make_dense`; `measured` says on
        which machine and when, as the cache may hand them to a run on another one, later.
    """
    network = load_network(subject.folder)
    in_float = [constraint.in_float for constraint in constraints(network)]
    kind = FP32 if all(in_float) else INT8
    networks = {DENSE: load_network(dense), kind: network}
    files = {DENSE: dense / DENSE_MODEL, kind: folder / MODEL}
    subject.write(network, folder / MODEL)
    if kind == INT8 and any(in_float):
        networks[PRUNED] = load_network(subject.folder, quantized=False)
        files[PRUNED] = folder / PRUNED_MODEL
        subject.write(networks[PRUNED], folder / PRUNED_MODEL)
    pack(folder / MODEL, folder / PACKAGE)
    _copy_network(subject, folder)

    own = training.predict(network, subject.batches())
    runtimes = [name for name in available(runtime.names) if get(name).runs == "onnx"]
    predicted = {
        name: subject.predictions(folder / MODEL, name) for name in sorted({REFERENCE, *runtimes})
    }
    accuracies = {name: subject.accuracy(classes) for name, classes in predicted.items()}
    latency = measure.latency(files, runtime, subject.shape, modules=networks)
    measured = {"started": now(), "int8_peak_gops": latency.int8_peak_gops}
    return {
        "accuracy": accuracies[REFERENCE],
        "network_accuracy": subject.accuracy(own),
        "agreement": measure.top1(predicted[REFERENCE], own),
        "accuracy_by_runtime": accuracies,
        "sparsity": sparsity(network),
        "parameters": sum(p.numel() for p in network.parameters()),
        "sizes": measure.sizes(
            folder / MODEL, folder / PACKAGE, dense / DENSE_MODEL, dense / WEIGHTS
        ),
        "latency": latency,
        "dataset": subject.dataset.fingerprint,
        "measured": measure.provenance() | measured,
    }


def _copy_network(subject: Subject, folder: Path) -> None:
    for name in (WEIGHTS, RECIPE):
        shutil.copyfile(subject.folder / name, folder / name)
