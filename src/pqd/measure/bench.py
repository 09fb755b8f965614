"""Measuring existing artifacts again, on the machine at hand."""

import logging
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pqd import options
from pqd.config import AugmentConfig, DatasetConfig, RuntimeConfig
from pqd.errors import UserError
from pqd.files import read_json, write_json
from pqd.measure.accuracy import predictions, top1
from pqd.measure.conditions import provenance
from pqd.measure.graph import input_shape, is_quantized
from pqd.measure.timings import latency
from pqd.result import FILE, SCHEMA, now
from pqd.runtimes import available, get

log = logging.getLogger(__name__)

BATCH_SIZE = 250  # of the accuracy's evaluation


def bench(paths: list[Path], runtime: RuntimeConfig) -> list[Path]:
    """Measures runs' folders, ONNX files and packages on this machine.

    Of a run the dense, the pruned and the final network are measured, and the final one's accuracy
    where the run's images are at hand. Torch runs the networks in FP32 only.

    Args:
        paths: folders of runs, `.onnx` or `.pqd` files.
        runtime: what to measure in, and the protocol's numbers.

    Returns:
        The records written: `bench-<hostname>.json` in a run's folder,
        `<file>.bench-<hostname>.json` beside a file.

    Raises:
        UserError: a path is neither of these; found out before anything is measured.
    """
    options.check(runtime, "runtime.")
    for path in paths:
        _check(path)
    # Two machines may write into one folder that they share.
    host = re.sub(r"[^\w.-]", "_", platform.node()) or "unknown"
    written = []
    for path in paths:
        name = f"bench-{host}.json" if path.is_dir() else f"{path.name}.bench-{host}.json"
        record = (path if path.is_dir() else path.parent) / name
        conditions = provenance() | {"started": now()}
        found = _measure(path, runtime)
        if not found["latency"]:
            raise UserError(f"{path}: no runtime of {runtime.names} could be measured")
        conditions |= {"int8_peak_gops": found["latency"].int8_peak_gops}
        write_json(record, {"schema": SCHEMA, "provenance": conditions, **found})
        written.append(record)
    return written


def _check(path: Path) -> None:
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise UserError(f"{path} is not the folder of a completed run: it has no model.onnx")
    elif path.suffix not in (".onnx", ".pqd"):
        raise UserError(f"{path} is neither a run's folder nor an .onnx or .pqd file")
    elif not path.is_file():
        raise UserError(f"{path} does not exist")


def _measure(path: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Returns `latency` and `accuracy_by_runtime` of a record."""
    if path.is_dir():
        model = path / "model.onnx"
        models = {"dense": path / "dense.onnx", "pruned": path / "pruned.onnx", _kind(model): model}
        models = {name: file for name, file in models.items() if file.is_file()}
        rows = latency(models, runtime, input_shape(model), _modules(path, runtime))
        return {"latency": rows, "accuracy_by_runtime": _accuracies(path, runtime)}
    with _onnx(path) as model:
        rows = latency({_kind(model): model}, runtime, input_shape(model))
    return {"latency": rows, "accuracy_by_runtime": {}}


def _kind(model: Path) -> str:
    return "int8" if is_quantized(model) else "fp32"


@contextmanager
def _onnx(path: Path) -> Iterator[Path]:
    """The ONNX file itself, or a temporary one from a package."""
    if path.suffix == ".onnx":
        yield path
        return
    from pqd.package import unpack

    with tempfile.TemporaryDirectory() as folder:
        unpack(path, model := Path(folder, "model.onnx"))
        yield model


def _modules(run: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """The FP32 networks, for runtimes that run these."""
    if not any(get(name).runs == "network" for name in runtime.names):
        return {}
    from pqd.constraints import constraints
    from pqd.networks import load_blueprint, load_network

    network = load_network(run, quantized=False)
    if not constraints(network):
        return {"dense": network}
    # The baseline's weights are not in the folder, and its speed does not depend on them.
    return {"dense": load_blueprint(run).build(), "pruned": network}


def _accuracies(run: Path, runtime: RuntimeConfig) -> dict[str, float]:
    """Top-1 in % of a run's model.onnx, by runtime; empty without its data set."""
    import torch

    from pqd import data

    try:
        record = read_json(run / FILE)
        dataset = data.load_dataset(_dataset_config(record["config"]["dataset"]))
        if record["final"].get("dataset", dataset.fingerprint) != dataset.fingerprint:
            raise UserError("the images found are not those of the run")
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        log.warning("%s: accuracy is not measured, as its data set is not here: %s", run, error)
        return {}
    found = {}
    for name in available(runtime.names):
        if get(name).runs == "onnx":
            batches = data.eval_batches(dataset.test, dataset, BATCH_SIZE, torch.device("cpu"))
            predicted = predictions(run / "model.onnx", (images for images, _ in batches), name)
            found[name] = top1(predicted, dataset.test.labels)
    return found


def _dataset_config(given: dict[str, Any]) -> DatasetConfig:
    """The run's data set, in PQD_DATA where this machine has one, else where the run had it."""
    config = DatasetConfig(**given | {"augment": AugmentConfig(**given["augment"])})
    if config.name.startswith("cifar"):
        config.root = os.environ.get("PQD_DATA", config.root)
    if not Path(config.root).is_dir():  # it would be made, and the data downloaded to it
        raise UserError(f"there is no folder {config.root}")
    return config
