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
        model: the ONNX file.
        images: batches of images as the file takes them, tensors or arrays; see
            `pqd.measure.graph.Input`.
        runtime: the name of one that runs ONNX files.
        threads: number of threads; 0 is all cores.

    Returns:
        The class of each image, int64 [N].
    """
    session = usable(runtime).open(model, threads or len(cores()))
    batches = (np.ascontiguousarray(batch) for batch in images)
    return np.concatenate([session(batch).argmax(axis=1) for batch in batches])


def top1(predicted: Any, labels: Any) -> float:
    """Top-1 accuracy in % of predicted classes [N] against labels [N], arrays or tensors."""
    return 100.0 * float(np.mean(np.asarray(predicted) == np.asarray(labels)))
