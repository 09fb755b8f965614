"""Measuring existing artifacts again, on the machine at hand."""

import logging
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqd import options
from pqd.config import RuntimeConfig
from pqd.errors import UserError, one_line
from pqd.files import write_json
from pqd.measure.accuracy import predictions, top1
from pqd.measure.conditions import provenance
from pqd.measure.graph import Input, batch_size, input_of, is_quantized
from pqd.measure.images import dataset_of, test_batches
from pqd.measure.timings import Latencies, latency
from pqd.result import SCHEMA, now
from pqd.runtimes import get

log = logging.getLogger(__name__)

BATCH_SIZE = 250  # of the accuracy's evaluation


@dataclass(frozen=True)
class Subject:
    """What is measured: a run's folder, an ONNX file or a package.

    Attributes:
        path: as given.
        models: ONNX files by name; the last one is what would be deployed.
    """

    path: Path
    models: dict[str, Path]

    @property
    def record(self) -> Path:
        """The file that the figures go to; two machines may write into one folder they share."""
        host = re.sub(r"[^\w.-]", "_", platform.node()) or "unknown"
        if self.path.is_dir():
            return self.path / f"bench-{host}.json"
        return self.path.with_name(f"{self.path.name}.bench-{host}.json")


def bench(
    paths: list[Path],
    runtime: RuntimeConfig,
    show: Callable[[Path, Latencies], None] = lambda path, rows: None,
) -> Iterator[Path]:
    """Measures runs' folders, ONNX files and packages on this machine.

    Of a run the dense, the pruned and the final network are measured, and the final one's accuracy
    where the run's images are at hand. Torch runs the networks in FP32 only.

    Args:
        paths: folders of runs, `.onnx` or `.pqd` files.
        runtime: what to measure in, and the protocol's numbers.
        show: gets a path and its rows as soon as they are measured.

    Yields:
        Each record when it is written: `bench-<hostname>.json` in a run's folder,
        `<file>.bench-<hostname>.json` beside a file.

    Raises:
        UserError: a path is neither of these, or holds a model that cannot be measured; found out
            before anything is measured. Or, at the end, what could not be measured or written.
    """
    options.check(runtime, "runtime.")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        subjects = [_subject(path, Path(folder, str(i)), runtime) for i, path in enumerate(paths)]
        for subject in subjects:
            try:
                _measure(subject, runtime, show)
                yield subject.record
            except UserError as error:
                failed.append(str(error))
    if failed:
        raise UserError("; ".join(failed))


def _subject(path: Path, temporary: Path, runtime: RuntimeConfig) -> Subject:
    """Finds the ONNX files of a path, and checks that they can be measured.

    Args:
        path: as given.
        temporary: a file that a package is unpacked into.
        runtime: what to measure in.
    """
    try:
        subject = Subject(path, _models(path, temporary))
        _check(subject, runtime)
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from None
    return subject


def _models(path: Path, temporary: Path) -> dict[str, Path]:
    if path.is_dir():
        model = path / "model.onnx"
        if not model.is_file():
            raise UserError(f"{path} is not the folder of a completed run: it has no model.onnx")
        files = {"dense": path / "dense.onnx", "pruned": path / "pruned.onnx", _kind(model): model}
        return {name: file for name, file in files.items() if file.is_file()}
    if path.suffix not in (".onnx", ".pqd"):
        raise UserError(f"{path} is neither a run's folder nor an .onnx or .pqd file")
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".onnx":
        return {_kind(path): path}
    from pqd.package import unpack

    unpack(path, temporary)
    return {_kind(temporary): temporary}


def _kind(model: Path) -> str:
    return "int8" if is_quantized(model) else "fp32"


def _check(subject: Subject, runtime: RuntimeConfig) -> None:
    """Sees to it that the models of a subject take what they are to be measured with."""
    inputs = {model: input_of(model) for model in subject.models.values()}
    *_, (last, taken) = inputs.items()
    for model, other in inputs.items():
        if other != taken:
            raise UserError(f"{model} takes images {_words(other)}, but {last} {_words(taken)}")
        size = batch_size(model)
        if size and set(runtime.batch_sizes) != {size}:
            raise UserError(f"{model} takes batches of {size} only; give --batch {size}")


def _words(taken: Input) -> str:
    return f"{list(taken.batch(0)[1:])}{' of uint8' if taken.uint8 else ''}"


def _measure(
    subject: Subject, runtime: RuntimeConfig, show: Callable[[Path, Latencies], None]
) -> None:
    """Measures a subject, shows the rows, and writes the record."""
    conditions = provenance() | {"started": now()}
    path, model = subject.path, list(subject.models.values())[-1]
    modules = _modules(subject, runtime) if path.is_dir() else {}
    shape, uint8 = input_of(model)
    rows = latency(subject.models, runtime, shape, modules, uint8=uint8)
    if not rows:
        reasons = rows.left_out | {
            name: f"runtime {name} failed: {reason}" for name, reason in rows.failed.items()
        }
        raise UserError(f"{path}: nothing could be measured: {'; '.join(reasons.values())}")
    measured = list(dict.fromkeys(row["runtime"] for row in rows))
    show(path, rows)  # before it is written: a full disk loses nothing that was seen
    record = {
        "schema": SCHEMA,
        "provenance": conditions | {"int8_peak_gops": rows.int8_peak_gops},
        "latency": rows,
        "failed": rows.failed,
        "accuracy_by_runtime": _accuracies(path, measured) if path.is_dir() else {},
    }
    try:
        write_json(subject.record, record)
    except OSError as error:
        raise UserError(f"cannot write {subject.record}: {error.strerror}") from None


def _modules(subject: Subject, runtime: RuntimeConfig) -> dict[str, Any]:
    """The FP32 networks of a run, for runtimes that run these; by name as its files."""
    if not any(get(name).runs == "network" for name in runtime.names):
        return {}
    from pqd.constraints import constraints
    from pqd.networks import load_blueprint, load_network

    run = subject.path
    network = load_network(run, quantized=False)
    name = next((name for name in ("pruned", "fp32") if name in subject.models), None)
    if name is None or not constraints(network):
        return {"dense": network}
    # The baseline's weights are not in the folder, and its speed does not depend on them.
    return {"dense": load_blueprint(run).build(), name: network}


def _accuracies(run: Path, runtimes: list[str]) -> dict[str, float]:
    """Top-1 in % of a run's model.onnx, by runtime; empty without its data set."""
    try:
        dataset = dataset_of(run)
    except UserError as error:
        log.warning("%s: accuracy is not measured, as its data set is not here: %s", run, error)
        return {}
    found = {}
    taken = input_of(run / "model.onnx")
    for name in runtimes:
        if get(name).file(run / "model.onnx"):
            batches = test_batches(dataset, taken.by(get(name)), BATCH_SIZE)
            try:
                predicted = predictions(run / "model.onnx", batches, name)
            except Exception as error:  # the latency that was measured is not to be lost
                log.warning("runtime %s gives no accuracy: %s", name, one_line(error, named=True))
                continue
            found[name] = top1(predicted, dataset.test.labels)
    return found
