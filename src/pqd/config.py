"""The typed configuration. `conf/` fills it; Hydra checks types and key names against it.

The schema is registered at the root, not in a group: a schema registered in group `order` would
be swept by `order=glob(*)`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from pqd.errors import UserError, choices

STAGES = ("prune", "quantize", "distill")


@dataclass
class OrderConfig:
    """The stages to run after the baseline, in this order, each at most once."""

    name: str = MISSING
    stages: list[str] = MISSING


@dataclass
class BackboneConfig:
    """The network. `kwargs` go to the builder (for `timm`: to `timm.create_model`)."""

    builder: str = MISSING  # resnet18, ..., or timm
    name: str = MISSING  # as shown in tables; for timm the model's name
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class AugmentConfig:
    """Augmentation of training images, in batch on the device."""

    crop_padding: int = 4  # pixels
    flip: bool = True  # horizontal, probability 0.5
    cutout: int = 0  # side of the zeroed square in pixels; 0 is off


@dataclass
class DatasetConfig:
    """The images: where they are, how they are split, how they are augmented."""

    name: str = MISSING  # digits, cifar10, cifar100, imagefolder
    root: str = MISSING
    image_size: int | None = None  # pixels; None keeps the data set's own
    validation: float = 0.1  # share of the train split held out, in (0, 1)
    split_seed: int = 0  # of the validation split
    train_limit: int | None = None  # use only this many training images (after the split)
    on_corrupt: str = "refuse"  # imagefolder: refuse or skip
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class BaselineConfig:
    """The dense network: trained, or loaded from a checkpoint."""

    checkpoint: str | None = None  # state dict of the dense backbone, .safetensors


@dataclass
class PruneConfig:
    """Magnitude pruning. Cubic schedule: Zhu and Gupta 2017, arXiv 1710.01878, eq. 1."""

    scope: str = "global"  # global: one threshold; layer: the same sparsity in every layer
    sparsity: float = 0.8  # share of zeros among the pruned weights, in [0, 1)
    schedule: str = "cubic"  # cubic or oneshot
    ramp: float = 0.5  # share of the stage's steps over which the cubic schedule rises
    updates: int = 20  # mask updates during the ramp
    skip_first: bool = False  # leave out the first convolution
    skip_last: bool = False  # leave out the classifier


@dataclass
class QuantizeConfig:
    """INT8 quantization-aware training."""

    weight_bits: int = 8  # 2 to 8: codes of b bits lie in [-(2^(b-1) - 1), 2^(b-1) - 1]
    calibration_batches: int = 16
    freeze_observers: float = 0.5  # share of the stage's epochs after which ranges are fixed
    freeze_batch_norm: float = 0.75  # share after which batch-norm statistics are fixed


@dataclass
class DistillConfig:
    """Hinton et al. 2015, arXiv 1503.02531: (1 - alpha) CE + alpha T^2 KL(teacher || student)."""

    temperature: float = 4.0
    alpha: float = 0.9
    teacher: str | None = None  # model.safetensors in a run; None is the own baseline
    cache_logits: bool = False  # run the teacher once per image; without augmentation only


@dataclass
class StageNumbers:
    """One number for each stage."""

    baseline: float = MISSING
    prune: float = MISSING
    quantize: float = MISSING
    distill: float = MISSING


@dataclass
class StageEpochs:
    """Epochs of each stage."""

    baseline: int = 200
    prune: int = 20
    quantize: int = 40
    distill: int = 40


@dataclass
class TrainConfig:
    """SGD with Nesterov momentum, linear warm-up and cosine decay, for every stage."""

    epochs: StageEpochs = field(default_factory=StageEpochs)
    lr: StageNumbers = field(default_factory=StageNumbers)
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not on batch norm, biases or quantizer parameters
    label_smoothing: float = 0.0
    warmup: float = 0.05  # share of a stage's steps
    eval_batch_size: int = 500
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    precision: str = "auto"  # auto, fp32, bf16
    compile: str = "auto"  # auto, true, false


@dataclass
class RuntimeConfig:
    """What latency is measured in, and how."""

    names: list[str] = field(default_factory=lambda: ["onnxruntime"])
    threads: list[int] = field(default_factory=lambda: [1, 0])  # 0 is all cores
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    min_calls: int = 200  # timed calls per model
    min_seconds: float = 3.0  # timed seconds per model
    blocks: int = 10
    max_interval: float = 0.1  # a relative interval wider than this is called too noisy
    seed: int = 0  # of the order of the blocks and of the bootstrap


@dataclass
class LoggerConfig:
    """Where metrics go besides the run's folder."""

    name: str = MISSING  # wandb or none
    project: str = "pqd"
    entity: str | None = None
    group: str | None = None  # None: the sweep's folder
    mode: str = "auto"  # auto (WANDB_MODE, else online when logged in), online, offline


@dataclass
class CacheConfig:
    """Finished stages, shared by all runs (content-addressed)."""

    enabled: bool = True
    dir: str = MISSING


@dataclass
class Config:
    """The whole configuration of one run."""

    seed: int = 0
    order: OrderConfig = field(default_factory=OrderConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


def register() -> None:
    """Registers the schema under the name `schema`, the first entry of `conf/config.yaml`."""
    ConfigStore.instance().store(name="schema", node=Config)


def parse(cfg: DictConfig) -> Config:
    """Turns the composed configuration into checked dataclasses.

    Raises:
        UserError: a value is out of its range; the message names the key and the accepted values.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.train.compile = config.train.compile.lower()  # YAML's true arrives as "True"
    _check(config)
    return config


def _check(c: Config) -> None:
    for stage in c.order.stages:
        if stage not in STAGES:
            raise choices("a stage of order.stages", stage, STAGES)
    if len(set(c.order.stages)) < len(c.order.stages):
        raise UserError(f"order.stages={c.order.stages} names a stage twice; each at most once")
    for name in (*STAGES, "baseline"):
        _at_least(f"train.epochs.{name}", getattr(c.train.epochs, name), 1)
        _positive(f"train.lr.{name}", getattr(c.train.lr, name))
    _one_of("dataset.on_corrupt", c.dataset.on_corrupt, ("refuse", "skip"))
    _within("dataset.validation", c.dataset.validation, 0, 1, open_low=True)
    _at_least("dataset.augment.crop_padding", c.dataset.augment.crop_padding, 0)
    _at_least("dataset.augment.cutout", c.dataset.augment.cutout, 0)
    if c.dataset.image_size is not None:
        _at_least("dataset.image_size", c.dataset.image_size, 1)
    if c.dataset.train_limit is not None:
        _at_least("dataset.train_limit", c.dataset.train_limit, 1)
    _one_of("prune.scope", c.prune.scope, ("global", "layer"))
    _one_of("prune.schedule", c.prune.schedule, ("cubic", "oneshot"))
    _within("prune.sparsity", c.prune.sparsity, 0, 1)
    _within("prune.ramp", c.prune.ramp, 0, 1, closed_high=True)
    _at_least("prune.updates", c.prune.updates, 1)
    _within("quantize.weight_bits", c.quantize.weight_bits, 2, 8, closed_high=True)
    _at_least("quantize.calibration_batches", c.quantize.calibration_batches, 1)
    _within("quantize.freeze_observers", c.quantize.freeze_observers, 0, 1, closed_high=True)
    _within("quantize.freeze_batch_norm", c.quantize.freeze_batch_norm, 0, 1, closed_high=True)
    _positive("distill.temperature", c.distill.temperature)
    _within("distill.alpha", c.distill.alpha, 0, 1, closed_high=True)
    augment = c.dataset.augment
    augmented = augment.crop_padding or augment.flip or augment.cutout
    if "distill" in c.order.stages and c.distill.cache_logits and augmented:
        raise UserError(
            "distill.cache_logits=true needs images that are the same in every epoch: "
            "dataset.augment.crop_padding=0, flip=false and cutout=0"
        )
    _at_least("train.batch_size", c.train.batch_size, 2)
    _at_least("train.eval_batch_size", c.train.eval_batch_size, 1)
    _within("train.momentum", c.train.momentum, 0, 1)
    _within("train.weight_decay", c.train.weight_decay, 0, 1)
    _within("train.label_smoothing", c.train.label_smoothing, 0, 1)
    _within("train.warmup", c.train.warmup, 0, 1)
    _one_of("train.precision", c.train.precision, ("auto", "fp32", "bf16"))
    _one_of("train.compile", c.train.compile, ("auto", "true", "false"))
    check_runtime(c.runtime)
    _one_of("logger.name", c.logger.name, ("wandb", "none"))
    _one_of("logger.mode", c.logger.mode, ("auto", "online", "offline"))


def check_runtime(runtime: RuntimeConfig) -> None:
    """Checks what latency is to be measured in.

    Raises:
        UserError: as of `parse`.
    """
    for name in runtime.names:
        _one_of("runtime.names", name, ("onnxruntime", "openvino", "torch", "torch_compiled"))
    for threads in runtime.threads:
        _at_least("runtime.threads", threads, 0)
    for batch_size in runtime.batch_sizes:
        _at_least("runtime.batch_sizes", batch_size, 1)
    for key in ("min_calls", "blocks"):
        _at_least(f"runtime.{key}", getattr(runtime, key), 1)


def _one_of(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise choices(key, value, accepted)


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise UserError(f"{key}={value} is too small; at least {low} is accepted")


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{key}={value} must be greater than 0 and finite")


def _within(
    key: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> None:
    inside = (low < value if open_low else low <= value) and (
        value <= high if closed_high else value < high
    )
    if not inside:
        interval = f"{'(' if open_low else '['}{low}, {high}{']' if closed_high else ')'}"
        raise UserError(f"{key}={value} is outside {interval}")
