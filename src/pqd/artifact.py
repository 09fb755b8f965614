"""The artifact of a run and its figures: what is deployed is what is measured."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pqd import measure, options, training
from pqd.config import ExportConfig, RuntimeConfig
from pqd.constraints import constraints
from pqd.constraints.mask import sparsity
from pqd.data import Dataset, eval_batches
from pqd.errors import UserError, one_line
from pqd.export.onnx_file import take_pixels, write_onnx
from pqd.inspect.look import look
from pqd.inspect.paths import few, in_float
from pqd.inspect.shares import SECONDS
from pqd.measure.images import test_batches
from pqd.networks import RECIPE, WEIGHTS, load_network
from pqd.package import pack
from pqd.result import DENSE, FP32, INT8, PRUNED, Allocation, Final, Layer, now
from pqd.runtimes import REFERENCE, get

VERSION = 8  # raise it when a code change alters a file or a figure
BATCH_SIZE = 250
MODEL, PACKAGE = "model.onnx", "model.pqd"
DENSE_MODEL, PRUNED_MODEL = "dense.onnx", "pruned.onnx"
DOUBTFUL, DIFFERENT = 99.5, 95.0  # agreement, %: below, a run warns or fails
PREDICTIONS = "predictions.npy"  # the network's own classes of the test images, int64 [N]

_CPU = torch.device("cpu")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A network to export: its folder, the images it is for, what it is called, in what form."""

    folder: Path
    dataset: Dataset
    backbone: str
    order: str
    export: ExportConfig = field(default_factory=ExportConfig)
    targets: tuple[str, ...] = ()  # runtimes that can be used here, besides those of ONNX files

    def identity(self, runtimes: Iterable[str]) -> dict[str, Any]:
        """Returns what, besides the network, files and figures depend on; goes into a hash.

        Args:
            runtimes: what is measured in; the versions of others do not count.
        """
        machine = measure.machine()
        others = sorted(name for name in self.targets if get(name).runs != "onnx")
        used = {"torch", "onnx", *(get(n).package for n in (REFERENCE, *runtimes, *others))}
        versions = {name: v for name, v in machine["versions"].items() if name in used}
        return {
            "version": VERSION,
            "dataset": self.dataset.fingerprint,
            "order": self.order,
            "export": options.selected(self.export),
            "machine": machine | {"versions": versions},
        } | ({"targets": others} if others else {})  # a key of before there were any stays

    @property
    def taken(self) -> measure.Input:
        """The images that its files take."""
        _, height, width, channels = self.dataset.test.images.shape
        return measure.Input((channels, height, width), self.export.uint8_input)

    def write(self, network: fx.GraphModule, path: Path) -> None:
        """Writes a network as ONNX with all that is needed to classify images with it.

        Targets that open other files get theirs beside it; what one refuses, the others still get.
        """
        metadata = {
            "classes": self.dataset.classes,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "image_size": self.taken.shape[1],
            "resize": self.dataset.resize,
            "channels": self.taken.shape[0],
            "backbone": self.backbone,
            "order": self.order,
        }
        write_onnx(network, path, self.taken.shape, metadata)
        if self.taken.uint8:
            take_pixels(path, self.dataset.mean, self.dataset.std)
        for target in map(get, self.targets):
            try:
                if warning := target.write(network, path, self.taken.shape, metadata):
                    log.warning("%s", warning)
            except Exception as error:  # of other people's exporters
                reason = one_line(error, named=True)
                log.warning("%s is not written for %s: %s", path.stem, target.title, reason)
                log.debug("%s is not written for %s", path.stem, target.title, exc_info=True)

    def accuracy(self, predicted: Any) -> float:
        """Returns the top-1 accuracy, in %, of predictions [N] over the whole test split."""
        return measure.top1(predicted, self.dataset.test.labels)

    def balanced(self, predicted: Any) -> float:
        """Returns the same with all classes weighted alike."""
        return measure.balanced(predicted, self.dataset.test.labels)

    def predictions(self, model: Path, runtime: str = REFERENCE) -> Any:
        """Returns the classes, int64 [N], that an ONNX file gives the test images."""
        return measure.predictions(model, self.inputs(), runtime)

    def inputs(self) -> Iterator[Tensor]:
        """Yields the test images in batches as its files take them."""
        return test_batches(self.dataset, self.taken, BATCH_SIZE)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test images [B, C, H, W] and their labels [B]."""
        return eval_batches(self.dataset.test, self.dataset, BATCH_SIZE, _CPU)


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
        "parameters": sum(p.numel() for p in network.parameters()),
        "sizes": measure.sizes(
            folder / MODEL, folder / PACKAGE, dense / DENSE_MODEL, dense / WEIGHTS
        ),
        "dataset": subject.dataset.fingerprint,
    }


class Incomplete(Exception):
    """Some figures could not be measured; another try may succeed.

    Attributes:
        figures: what was measured.
        reasons: why the others were not, by runtime.
    """

    def __init__(self, figures: dict[str, Any], reasons: dict[str, str]) -> None:
        """Takes both."""
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.figures, self.reasons = figures, reasons


def figures(subject: Subject, dense: Path, made: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Measures an artifact in each runtime.

    Args:
        subject: as given to `make`.
        dense: a folder filled by `make_dense`.
        made: a folder filled by `make`.
        runtime: what to measure in; all of it can be used here.

    Returns:
        Accuracies, agreements and latencies, as in `pqd.result.Final`; `measured` says on which
        machine and when, as the cache may hand them to a run on another one, later.

    Raises:
        Incomplete: a runtime failed.
    """
    network = load_network(made)
    kind = FP32 if all(constraint.in_float for constraint in constraints(network)) else INT8
    models = {DENSE: dense / DENSE_MODEL, kind: made / MODEL}
    networks = {DENSE: load_network(dense), kind: network}
    if (made / PRUNED_MODEL).exists():
        models[PRUNED] = made / PRUNED_MODEL
        networks[PRUNED] = load_network(made, quantized=False)
    accuracies, agreements, failed = {}, {}, {}
    own = np.load(made / PREDICTIONS)
    for name in runtime.names:
        if get(name).file(made / MODEL):
            try:
                predicted = subject.predictions(made / MODEL, name)
            except Exception as error:  # of other people's code; what is made is made
                failed[name] = one_line(error, named=True)
                continue
            accuracies[name] = subject.accuracy(predicted)
            agreements[name] = measure.top1(predicted, own)
    shape, uint8 = subject.taken
    latency = measure.latency(models, runtime, shape, networks, uint8=uint8)
    measured = {"started": now(), "int8_peak_gops": latency.int8_peak_gops}
    try:
        layers = _layers(subject, made, runtime)
    except Exception as error:  # the same
        failed["layers"], layers = one_line(error, named=True), []
    found = {
        "accuracy_by_runtime": accuracies,
        "agreement_by_runtime": agreements,
        "latency": list(latency),
        "layers": [asdict(layer) for layer in layers],
        "measured": measure.provenance() | measured,
    }
    if failed := failed | latency.failed:
        raise Incomplete(found, failed)
    return found


def _layers(subject: Subject, made: Path, runtime: RuntimeConfig) -> list[Layer]:
    names = [name for name in runtime.names if get(name).runs == "onnx"]
    with tempfile.TemporaryDirectory() as folder:
        quantized = measure.is_quantized(made / MODEL)
        float_ = in_float(made, Path(folder, PRUNED_MODEL)) if quantized else None
        images = few(subject.inputs())
        return look(
            made / MODEL,
            runtimes=names,
            package=made / PACKAGE,
            float_=float_,
            images=images,
            seconds=min(runtime.min_seconds, SECONDS),
        ).layers


def doubts(final: Final, images: int, bits: Allocation | None = None) -> list[str]:
    """Returns in which way what is deployed is not what was trained, a line for each.

    Args:
        final: the figures of a run.
        images: of the test split; of few images a single one is a larger share.
        bits: of the network, where they were chosen for a size.

    Raises:
        UserError: they differ so much that the figures are of another network.
    """
    agreements: dict[str, float | None] = {
        f"{MODEL} in {get(name).title}": found for name, found in final.agreement_by_runtime.items()
    }
    agreements |= {f"{DENSE_MODEL} in {get(REFERENCE).title}": final.dense_agreement}
    agreements |= {f"{MODEL} in {get(REFERENCE).title}": final.agreement}
    doubtful = []
    for name, agreement in agreements.items():
        if agreement is None or (100 - agreement) * images < 150:  # less than two images
            continue
        line = f"{name} classifies {agreement:.2f} % of the test images as the network does"
        if agreement < DIFFERENT:
            raise UserError(f"{line}; the files are kept, but this is not the network trained")
        if agreement < DOUBTFUL:
            doubtful.append(line)
    if bits and (size := final.sizes["package"]) > bits.limit_bytes:
        doubtful.append(f"{PACKAGE} has {size:,} bytes, {bits.limit_bytes:,} are its limit")
    return doubtful


def shipped(dense: Path, made: Path, targets: Iterable[str]) -> list[Path]:
    """Returns the files that go to a run's folder.

    Args:
        dense: a folder filled by `make_dense`.
        made: a folder filled by `make`.
        targets: as in `Subject`.
    """
    models = [dense / DENSE_MODEL, made / MODEL, made / PRUNED_MODEL]
    beside = [file for name in targets for model in models if (file := get(name).file(model))]
    others = [made / name for name in (PACKAGE, WEIGHTS, RECIPE)]
    return [path for path in dict.fromkeys((*models, *beside, *others)) if path.exists()]


def _copy_network(subject: Subject, folder: Path) -> None:
    for name in (WEIGHTS, RECIPE):
        shutil.copyfile(subject.folder / name, folder / name)
