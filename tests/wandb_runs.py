"""What is logged to W&B, and runs of W&B in which all works or nothing does."""

import threading

from configs import config as default_config
from pqd import result, tracking
from pqd.config import BackboneConfig, CacheConfig, DatasetConfig, LoggerConfig
from pqd.result import Result
from pqd.tracking import run as tracking_run


def config(order="pqd"):
    """The configuration of a run that is logged."""
    return default_config(
        order,
        seed=3,
        backbone=BackboneConfig("resnet20", "resnet20"),
        dataset=DatasetConfig(name="digits", root="data"),
        logger=LoggerConfig(name="wandb"),
        cache=CacheConfig(dir="cache"),
    )


def latency(model, p50, threads=1):
    return {
        "runtime": "onnxruntime",
        "version": "1",
        "model": model,
        "threads": threads,
        "batch_size": 1,
        "p50_ms": p50,
        "p90_ms": p50 + 0.1,
        "p99_ms": p50 + 0.2,
        "p50_interval_ms": [p50, p50],
        "calls": 400,
        "speedup": 4.0 / p50,
        "speedup_interval": [1.0, 2.0],
        "noisy": False,
        "slower_than_dense": False,
    }


def epochs(count, **more):
    return [{"epoch": e, "loss": 1 / e, "validation_accuracy": 90.0 + e, **more} for e in count]


def completed(order="pqd", seed=3, accuracy=98.0):
    stages = {"p": "prune", "q": "quantize", "d": "distill"}
    trained = ["baseline", *(stages[letter] for letter in order)]
    content = {
        "schema": 2,
        "status": "completed",
        "reason": None,
        "name": f"resnet20_digits_{order}_s0.9_seed{seed}",
        "config_hash": f"{order}{seed}",
        "order": trained[1:],
        "config": {
            "seed": seed,
            "order": {"name": order},
            "backbone": {"name": "resnet20"},
            "dataset": {"name": "digits"},
            "prune": {"sparsity": 0.9},
        },
        "stages": [
            {
                "stage": stage,
                "key": f"{stage}{seed}",
                "cached": stage == "baseline",
                "epochs": 2,
                "seconds": 1.0,
                "loss": 0.5,
                "validation_accuracy": 92.0,
                "sparsity": 0.0,
                "history": epochs([1, 2]),
            }
            for stage in trained
        ],
        "final": {
            "accuracy": accuracy,
            "network_accuracy": accuracy,
            "agreement": 100.0,
            "dense_accuracy": 98.6,
            "sparsity": 0.9,
            "parameters": 272474,
            "macs": 40810000,
            "sizes": {"fp32_onnx": 900, "int8_onnx": 300, "package": 100, "floor": 80},
            "latency": [latency("dense", 4.0), latency("int8", 1.0), latency("int8", 0.7, 0)],
            "accuracy_by_runtime": {"onnxruntime": accuracy},
        },
        "provenance": {"cpu": "AMD EPYC", "cores": 2, "started": "2026-11-22T08:00:00+00:00"},
        "files": {},
    }
    return result.decode(Result, content, "completed")


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == tracking_run.__name__]


def log(config, folder, found=None):
    """Logs a completed run, or another one; returns what it was logged by."""
    with tracking.start(config, folder, "x") as tracker:
        tracker.finish(found or completed(), [])
    return tracker


def hang(*_, **__):
    threading.Event().wait()


def broken(*_, **__):
    raise OSError("no space left\non device.")


class FakeRun:
    """A run in which everything works."""

    resumed, tags = False, None
    url, dir = "https://wandb.ai/me/pqd/runs/1", "/runs/x/wandb/offline-run-1/files"

    def __init__(self, **_):
        self.config, self.summary, self.exit_codes, self.logged = {}, {}, [], []

    def define_metric(self, *_, **__): ...

    def log(self, values):
        self.logged.append(values)
        self.summary.update(values)

    def log_artifact(self, *_, **__): ...

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)
