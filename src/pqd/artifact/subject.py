"""A network to export, and the files of its artifact."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pqd import measure, options
from pqd.config import ExportConfig
from pqd.data import Dataset, eval_batches
from pqd.errors import one_line
from pqd.export.onnx_file import take_pixels, write_onnx
from pqd.measure.images import test_batches
from pqd.networks import RECIPE, WEIGHTS
from pqd.runtimes import REFERENCE, get

VERSION = 8  # raise it when a code change alters a file or a figure
BATCH_SIZE = 250
MODEL, PACKAGE = "model.onnx", "model.pqd"
DENSE_MODEL, PRUNED_MODEL = "dense.onnx", "pruned.onnx"

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
        """Returns the classes, int64 [N], that a runtime's file of a model gives test images."""
        return measure.predictions(model, self.inputs(runtime), runtime)

    def inputs(self, runtime: str = REFERENCE) -> Iterator[Tensor]:
        """Yields the test images in batches as a runtime's files take them."""
        return test_batches(self.dataset, self.taken.by(get(runtime)), BATCH_SIZE)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test images [B, C, H, W] and their labels [B]."""
        return eval_batches(self.dataset.test, self.dataset, BATCH_SIZE, _CPU)


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
