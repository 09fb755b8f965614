"""Measures an artifact in each runtime, and doubts what does not fit together."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqd import measure
from pqd.artifact.make import PREDICTIONS
from pqd.artifact.subject import DENSE_MODEL, MODEL, PACKAGE, PRUNED_MODEL, Subject
from pqd.config import RuntimeConfig
from pqd.constraints import constraints
from pqd.errors import UserError, one_line
from pqd.inspect.look import look
from pqd.inspect.paths import few, in_float
from pqd.inspect.shares import SECONDS
from pqd.networks import load_network
from pqd.result import DENSE, FP32, INT8, PRUNED, Allocation, Final, Layer, now
from pqd.runtimes import REFERENCE, get

DOUBTFUL, DIFFERENT = 99.5, 95.0  # agreement, %: below, a run warns or fails


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
