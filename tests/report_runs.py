"""Writes plausible result.json files for the tests and the benchmark of the report."""

import hashlib
import itertools
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pqd import files
from pqd.result import FILE, Bench, Final, Latency, Provenance, Result, StageResult

ORDERS = ("pqd", "pdq", "qpd", "qdp", "dpq", "dqp")
NAMES = {"p": "prune", "q": "quantize", "d": "distill", "x": "toy"}
EPOCHS = {"baseline": 12, "prune": 4, "quantize": 6, "distill": 6, "toy": 2}
# accuracy and cost of the dense network: (points below the data set's best, million parameters, ms)
BACKBONES = {
    "resnet20": (1.5, 0.27, 0.9),
    "resnet18": (0.0, 11.17, 12.1),
    "vgg16_bn": (0.8, 14.7, 9.1),
}
DATASETS = {"cifar10": 95.4, "cifar100": 77.0, "digits": 98.8}
EFFECT = {"pqd": 0.0, "pdq": -0.15, "qpd": -0.05, "qdp": -0.6, "dpq": 0.25, "dqp": -0.4}
EFFECT |= {"p": -0.2, "q": 0.0, "d": 0.5, "pq": -0.35, "none": 0.0}


def write_sweep(folder: Path, **swept: Any) -> list[Path]:
    """Writes the product of the swept values (see `result`), one folder per run."""
    keys, values = list(swept), [list(v) for v in swept.values()]
    return [
        write(folder, result(**dict(zip(keys, point, strict=True))))
        for point in itertools.product(*values)
    ]


def write_orders(folder: Path, accuracies: dict[str, list[float]], **settings: Any) -> Path:
    """Writes one run per order and seed with the accuracies given, the dense baseline at 90 %."""
    for order, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write(folder, result(order, seed, accuracy=accuracy, dense_accuracy=90.0, **settings))
    return folder


def write(folder: Path, run: Result) -> Path:
    """Writes one result below the folder."""
    path = folder / run.name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, asdict(run))
    return path


def write_bench(path: Path, where: Provenance, rows: list[Latency]) -> None:
    """Writes what `pqd bench` measured."""
    files.write_json(path, asdict(Bench(where, rows)))


def unfinished(run: Result, status: Any, reason: str | None = None) -> Result:
    """A run that did not get so far."""
    run.status, run.reason, run.final = status, reason, None
    return run


def result(
    order: str = "pqd",
    seed: int = 0,
    backbone: str = "resnet20",
    dataset: str = "digits",
    sparsity: float = 0.8,
    *,
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino"),
    threads: tuple[int, ...] = (1, 2),
    alpha: float = 0.9,
    accuracy: float | None = None,
    dense_accuracy: float | None = None,
) -> Result:
    """A completed run; numbers are drawn, the same for the same arguments."""
    shared = random.Random(f"{seed} {backbone} {dataset}")
    own = random.Random(f"{order} {seed} {backbone} {dataset} {sparsity} {alpha}")
    below, millions, ms = BACKBONES[backbone]
    letters = "" if order == "none" else order
    stages = [NAMES[letter] for letter in letters]
    dense = round(DATASETS[dataset] - below + shared.gauss(0, 0.15), 2)
    dense = dense if dense_accuracy is None else dense_accuracy
    loss = 30 * max(0.0, sparsity - 0.6) ** 2 if "p" in letters else 0.0
    final = round(dense + EFFECT.get(order, -0.1) - loss + own.gauss(0, 0.12), 2)
    final = final if accuracy is None else accuracy
    config: dict[str, Any] = {
        "seed": seed,
        "order": {"name": order},
        "backbone": {"builder": backbone, "name": backbone, "kwargs": {}},
        "dataset": {"name": dataset, "root": "data"},
        **{stage: {"epochs": epochs} for stage, epochs in EPOCHS.items()},
        "train": {"device": "auto", "batch_size": 128},
        "runtime": {"names": list(runtimes)},
    }
    config["prune"] |= {"sparsity": sparsity, "scope": "global"}
    config["distill"] |= {"alpha": alpha, "temperature": 4.0, "teacher": None}
    digest = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:16]
    return Result(
        name=f"{backbone}_{dataset}_{order}_s{sparsity}_a{alpha}_seed{seed}",
        status="completed",
        config=config,
        order=stages,
        config_hash=digest,
        stages=_stages(["baseline", *stages], dense, final, shared, own, f"{seed}", ms),
        final=Final(
            accuracy=final,
            network_accuracy=final,
            agreement=100.0,
            dense_accuracy=dense,
            sparsity=round(sparsity - 0.002, 4) if "p" in letters else 0.0,
            parameters=int(millions * 1e6),
            macs=int(ms * 4e7),
            sizes=_sizes(letters, millions, sparsity, own),
            latency=latency(letters, ms, runtimes, threads, own),
            accuracy_by_runtime=dict.fromkeys(runtimes, final),
        ),
        provenance=provenance(started=f"2026-03-01T08:{seed % 60:02d}:00+00:00"),
        files={"model.onnx": {"bytes": 1, "sha256": digest}},
    )


def provenance(cpu: str = "Intel Xeon Platinum 8481C", **changes: Any) -> Provenance:
    """Where a run was measured."""
    usual: dict[str, Any] = {
        "cpu": cpu,
        "isa": ["avx2", "avx512f", "avx512_vnni"],
        "cores": 2,
        "os": "Linux 6.1",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        "commit": "0123456789abcdef",
        "started": "2026-03-01T08:00:00+00:00",
        "seconds": 12.0,
        "device": "cpu",
        "precision": "fp32",
        "int8_peak_gops": 236.8,
    }
    return Provenance(**usual | changes)


def latency(
    letters: str,
    ms: float,
    runtimes: tuple[str, ...] = ("onnxruntime",),
    threads: tuple[int, ...] = (1,),
    own: random.Random | None = None,
    **changes: Any,
) -> list[Latency]:
    """Latency rows of a run with these stages."""
    own = own or random.Random(0)
    models = {"dense": 1.0}
    if "p" in letters and "q" in letters:
        models["pruned"] = 1.0
    models["int8" if "q" in letters else "fp32"] = 0.27 if "q" in letters else 1.0
    rows = []
    for runtime, cores in itertools.product(runtimes, threads):
        base = ms * (0.9 if runtime == "openvino" else 1.0) / cores**0.8
        for model, factor in models.items():
            p50 = base * factor * own.gauss(1, 0.01)
            row: dict[str, Any] = {
                "runtime": runtime,
                "version": "1.31.1" if runtime == "onnxruntime" else "2026.1",
                "model": model,
                "threads": cores,
                "batch_size": 1,
                "p50_ms": p50,
                "p90_ms": 1.05 * p50,
                "p99_ms": 1.2 * p50,
                "p50_interval_ms": [0.99 * p50, 1.01 * p50],
                "calls": 400,
                "speedup": base / p50,
                "speedup_interval": [0.98 * base / p50, 1.02 * base / p50],
                "slower_than_dense": p50 > 1.02 * base,
                "float_compute_nodes": 0,
                "macs": int(ms * 4e7),
            }
            rows.append(Latency(**row | changes))
    return rows


def _sizes(letters: str, millions: float, sparsity: float, own: random.Random) -> dict[str, int]:
    parameters = millions * 1e6
    kept = 1 - sparsity if "p" in letters else 1.0
    full, codes = int(4 * parameters), int(parameters * (kept * 0.8 + 0.08))
    int8 = "q" in letters
    package = int((codes if int8 else full * (kept * 0.9 + 0.03)) * own.gauss(1, 0.005))
    sizes = {"fp32_checkpoint": full + 40_000, "fp32_onnx": full + 20_000, "package": package}
    if int8:
        sizes |= {"int8_onnx": int(parameters) + 30_000, "int8_onnx_zstd": int(1.15 * package)}
        sizes["floor"] = int(0.97 * package)
    return sizes


def _stages(
    names: list[str],
    dense: float,
    final: float,
    shared: random.Random,
    own: random.Random,
    path: str,
    ms: float,
) -> list[StageResult]:
    entries = []
    for i, name in enumerate(names):
        path += f" {name}"
        share = i / max(1, len(names) - 1)
        accuracy = dense + 0.3 + share * (final - dense) + (own.gauss(0, 0.2) if i else 0.0)
        accuracy -= 0.5 if name == "prune" else 0.0
        epochs = EPOCHS[name]
        seconds = epochs * ms * 0.4 * shared.uniform(0.9, 1.1)
        history = [
            {
                "epoch": epoch,
                "loss": 1.9 / epoch,
                "validation_accuracy": accuracy * epoch / epochs,
                "lr": 0.1,
                "seconds": seconds / epochs,
            }
            for epoch in range(1, epochs + 1)
        ]
        key = hashlib.sha256(f"{path} {dense} {final if i else ''}".encode()).hexdigest()
        entries.append(
            StageResult(
                stage=name,
                key=key[:16],
                cached=i == 0 and own.random() < 0.8,
                epochs=epochs,
                seconds=seconds,
                loss=0.01,
                validation_accuracy=accuracy,
                history=history,
            )
        )
    return entries


class Logged:
    """Stands for a run of W&B: keeps what is logged."""

    def __init__(self):
        self.logged, self.summary, self.config = {}, {}, {}
        self.log = self.logged.update
