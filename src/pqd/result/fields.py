"""What `result.json` and `bench-*.json` hold.

Sizes are in bytes, accuracies in %, times in s or, where the name says so, in ms; sparsity is a
share of zeros.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

SCHEMA = 2
DENSE, PRUNED, INT8, FP32 = "dense", "pruned", "int8", "fp32"  # the models that are measured
UNEVEN = 0.1  # points of accuracy, from which balancing the classes is worth telling
DEPLOYED = (INT8, FP32)  # the last model of an order: INT8, or FP32 where nothing quantizes

log = logging.getLogger(__name__)

# stopped: by `stop_below`, or a dry run
Status = Literal["running", "completed", "stopped", "failed", "interrupted"]


class _Checked:
    """Numbers are finite, and nothing passes for what it is not."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "allow_inf_nan": False}


@dataclass
class Provenance(_Checked):
    """The conditions that figures hold under, as far as they are known."""

    started: str = ""  # UTC, ISO 8601, to the second
    seconds: float | None = None  # that it took
    cpu: str | None = None
    isa: list[str] = field(default_factory=list)
    cores: int | None = None
    os: str | None = None
    python: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    device: str | None = None
    precision: str | None = None
    int8_peak_gops: float | None = None

    @property
    def machine(self) -> str:
        """The machine in words."""
        cores = "1 core" if self.cores == 1 else f"{self.cores or '?'} cores"
        return f"{self.cpu or 'unknown CPU'}, {cores}"


@dataclass
class LayerBits(_Checked):
    """What the weights of one layer were given."""

    bits: int
    weights: int
    bytes: int  # in the entropy coder


@dataclass
class Allocation(_Checked):
    """The bits of each layer where `quantize.size_kib` chooses them."""

    limit_bytes: int
    package_bytes: int  # of the network at the end of the stage
    layers: dict[str, LayerBits]

    @property
    def mean_bits(self) -> float:
        """Over all weights."""
        layers = self.layers.values()
        return sum(a.bits * a.weights for a in layers) / sum(a.weights for a in layers)


@dataclass
class StageResult(_Checked):
    """One stage of a run; the baseline is the first."""

    stage: str
    key: str  # of its cache entry
    seconds: float  # of training, in all processes that worked on it
    cached: bool = False  # found rather than trained by this run
    epochs: int = 0
    loss: float | None = None
    validation_accuracy: float | None = None
    sparsity: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of every epoch
    teacher_accuracy: float | None = None  # on the validation split, too
    teacher_test_accuracy: float | None = None  # of one from elsewhere, on the test split
    shape: dict[str, Any] | None = None  # of a network with fewer channels; see `pqd.pruning`
    bits: Allocation | None = None


@dataclass
class Latency(_Checked):
    """One model in one runtime, with one number of threads and one batch size."""

    runtime: str
    model: str  # one of the four above
    threads: int
    batch_size: int
    p50_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    p50_interval_ms: list[float] | None = None  # 95 %
    version: str = ""
    cpus: list[int] = field(default_factory=list)
    calls: int = 0
    speedup: float | None = None  # against the dense FP32 model in the same runtime
    speedup_interval: list[float] | None = None
    noisy: bool = False
    slower_than_dense: bool | None = False
    others_share: float | None = None
    macs: int | None = None  # of one image
    float_compute_nodes: int | None = None
    int8_peak_share: float | None = None

    @property
    def deployed(self) -> bool:
        """Whether this is the model that the run ends with."""
        return self.model in DEPLOYED

    @property
    def setting(self) -> tuple[int, int]:
        """Threads and batch size."""
        return self.threads, self.batch_size


@dataclass
class Layer(_Checked):
    """One layer of model.onnx; or, without a name, its other operations of one kind."""

    name: str
    kind: str
    weight_shape: list[int] = field(default_factory=list)
    output_shape: list[int] = field(default_factory=list)  # of one image
    macs: int | None = None  # of one image
    zeros: float | None = None  # share of the weights
    bits: int | None = None  # that hold every weight
    package_bytes: int | None = None  # that the weights take of the package
    time: dict[str, float] = field(default_factory=dict)  # share, by runtime: one image, one thread
    weight_error: float | None = None  # against FP32, relative
    output_error: float | None = None  # the same on a few test images, before the activation


@dataclass
class Final(_Checked):
    """The artifact of a completed run and its figures."""

    dense_accuracy: float
    accuracy: float  # of model.onnx in ONNX Runtime, whole test split
    sparsity: float
    network_accuracy: float | None = None  # of the same network in PyTorch
    balanced_accuracy: float | None = None  # of model.onnx, the mean of the classes' accuracies
    dense_balanced_accuracy: float | None = None
    agreement: float | None = None  # share of test images, %, that both classify alike
    dense_agreement: float | None = None  # the same of dense.onnx and the dense network
    accuracy_by_runtime: dict[str, float] = field(default_factory=dict)
    agreement_by_runtime: dict[str, float] = field(default_factory=dict)
    macs: int | None = None  # of the dense network, one image
    parameters: int | None = None  # of the network that is deployed, those that are 0 included
    sizes: dict[str, int] = field(default_factory=dict)
    latency: list[Latency] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    dataset: str | None = None  # fingerprint of the images
    measured: Provenance | None = None  # where and when, as the cache may hand figures on

    @property
    def fastest(self) -> list[Latency]:
        """Latencies of the deployed model, one a runtime, the fastest first.

        All with the number of threads and the batch size that were measured first.
        """
        rows = [row for row in self.latency if row.deployed]
        same = [row for row in rows if row.setting == rows[0].setting]
        return sorted(same, key=lambda row: row.p50_ms)

    @property
    def deployed(self) -> Latency | None:
        """The latency of the deployed model in the runtime that is fastest."""
        return next(iter(self.fastest), None)

    @property
    def uneven(self) -> bool:
        """Whether classes are so uneven that balancing them changes an accuracy."""
        pairs = (
            (self.accuracy, self.balanced_accuracy),
            (self.dense_accuracy, self.dense_balanced_accuracy),
        )
        return any(b is not None and abs(a - b) >= UNEVEN for a, b in pairs)


@dataclass
class Result(_Checked):
    """One run, from its start on; one that stays `running` has died."""

    name: str
    status: Status
    config: dict[str, Any]
    order: list[str] = field(default_factory=list)  # names of the stages after the baseline
    config_hash: str = ""
    reason: str | None = None
    stages: list[StageResult] = field(default_factory=list)
    final: Final | None = None
    provenance: Provenance = field(default_factory=Provenance)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name: bytes, sha256
    warnings: list[str] = field(default_factory=list)  # what to know before trusting the figures
    schema: int = SCHEMA

    def warn(self, line: str) -> None:
        """Notes, and logs, what to know before trusting the figures."""
        log.warning("%s", line)
        self.warnings.append(line)

    @property
    def bits(self) -> Allocation | None:
        """The bits of the network that is deployed, where they were chosen layer by layer."""
        return self.stages[-1].bits if self.stages else None


@dataclass
class Bench(_Checked):
    """What `pqd bench` measured of a run or a model, on one machine."""

    provenance: Provenance
    latency: list[Latency]
    accuracy_by_runtime: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA
