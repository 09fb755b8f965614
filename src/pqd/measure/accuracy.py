"""What a deployed model predicts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqd.measure.cpu import cores
from pqd.runtimes import REFERENCE, usable


def predictions(
    model: Path, images: Iterable[Any], runtime: str = REFERENCE, threads: int = 0
) -> NDArray[np.int64]:
    """Runs an ONNX file over batches of images.

    Args:
        model: the ONNX file, with those of other runtimes beside it.
        images: batches of images as the file takes them, tensors or arrays; see
            `pqd.measure.graph.Input`.
        runtime: the name of one that runs files.
        threads: number of threads; 0 is all cores.

    Returns:
        The class of each image, int64 [N].
    """
    where = usable(runtime)
    session = where.open(where.file(model), threads or len(cores()))
    batches = (np.ascontiguousarray(batch) for batch in images)
    return np.concatenate([session(batch).argmax(axis=1) for batch in batches])


def top1(predicted: Any, labels: Any) -> float:
    """Top-1 accuracy in % of predicted classes [N] against labels [N], arrays or tensors."""
    return 100.0 * float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def balanced(predicted: Any, labels: Any) -> float:
    """Class-balanced accuracy in %: the mean, over the classes there are, of their own accuracies.

    Args:
        predicted: classes [N], an array or a tensor.
        labels: likewise.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    hits = np.bincount(labels[np.asarray(predicted) == labels], minlength=len(counts))
    return 100.0 * float(np.mean(hits[counts > 0] / counts[counts > 0]))
