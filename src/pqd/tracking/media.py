"""What W&B shows of a finished network beside its figures: its layers, and what it predicts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pqd.data import Dataset
from pqd.result import Layer

if TYPE_CHECKING:
    import wandb

WRONG, RIGHT = 24, 8  # test images shown, the first of each kind
MOST_CLASSES = 100  # of a confusion matrix, which has a row for every pair
LAYERS, PREDICTIONS, CONFUSION = "layers", "test/predictions", "test/confusion_matrix"


def record_layers(run: "wandb.Run", layers: Sequence[Layer]) -> None:
    """Logs the table `layers`: a row for each layer of model.onnx with weights."""
    import wandb

    runtimes = list(dict.fromkeys(name for layer in layers for name in layer.time))
    columns = ["layer", "kind", "weights", "sparsity_percent", "bits", "macs", "package_bytes"]
    columns += ["weight_error", "output_error"]
    table = wandb.Table(columns=[*columns, *(f"time_percent/{name}" for name in runtimes)])
    for layer in layers:
        if not layer.weight_shape:
            continue
        zeros = None if layer.zeros is None else 100 * layer.zeros
        size = int(np.prod(layer.weight_shape))
        row = [layer.name, layer.kind, size, zeros, layer.bits, layer.macs, layer.package_bytes]
        times = (layer.time.get(name) for name in runtimes)
        shares = (None if share is None else 100 * share for share in times)
        table.add_data(*row, layer.weight_error, layer.output_error, *shares)
    run.log({LAYERS: table})


def record_predictions(run: "wandb.Run", dataset: Dataset, predicted: Any) -> None:
    """Logs some test images with what the network takes them for, and its confusion matrix.

    Args:
        run: an open run.
        dataset: with N test images.
        predicted: their classes, int64 [N].
    """
    import wandb

    actual, names = dataset.test.labels.numpy(), dataset.classes
    table = wandb.Table(columns=["image", "class", "predicted", "correct"])
    wrong, right = np.flatnonzero(predicted != actual), np.flatnonzero(predicted == actual)
    for index in (*wrong[:WRONG], *right[:RIGHT]):
        image = wandb.Image(dataset.test.images[index].numpy())
        given, taken = int(actual[index]), int(predicted[index])
        table.add_data(image, names[given], names[taken], given == taken)
    logged: dict[str, Any] = {PREDICTIONS: table}
    if len(names) <= MOST_CLASSES:
        logged[CONFUSION] = wandb.plot.confusion_matrix(
            y_true=actual.tolist(),
            preds=predicted.tolist(),
            class_names=names,
            title="test split: class and prediction",
        )
    run.log(logged)
