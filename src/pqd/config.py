"""The typed configuration: all settings but those of stages, which stand beside their stage.

`conf/` holds named deviations from the defaults here; `pqd.schema` puts both together.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

from omegaconf import MISSING

from pqd.errors import UserError
from pqd.objectives import OBJECTIVES
from pqd.options import Decides, option
from pqd.runtimes import REFERENCE, RUNTIMES, get
from pqd.scheme import Scheme, Sums

BASELINE = "baseline"


@dataclass
class StageSettings:
    """What every stage is trained with; a stage adds its own and sets the defaults."""

    epochs: int = option(20, low=1)  # scaled by `budget`
    lr: float = option(0.05, above=0)  # the highest, at the end of the warm-up


@dataclass
class OrderConfig:
    """The stages to run after the baseline, in this order, each at most once."""

    name: str = MISSING  # spelled from the letters of the stages, e.g. pqd; none without any


@dataclass
class BackboneConfig:
    """The network. `kwargs` go to the builder (for `timm`: to `timm.create_model`)."""

    builder: str = MISSING  # resnet18, ..., timm, or the dotted path of a function
    name: str = MISSING  # as shown in tables; for timm the model's name
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class AugmentConfig:
    """Augmentation of training images, in batch on the device."""

    crop_padding: int = option(4, low=0)  # pixels
    flip: bool = True  # horizontal, probability 0.5
    cutout: int = option(0, low=0)  # side of the zeroed square in pixels; 0 is off
    # Mixes an image with another: by a weighted sum (mixup) or by a box of the other (cutmix); both
    # take turns. The value is alpha of the Beta distribution of the share it keeps; 0 is off.
    mixup: float = option(0.0, low=0)
    cutmix: float = option(0.0, low=0)

    def __bool__(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return any(vars(self).values())


@dataclass
class DatasetConfig:
    """The images: where they are, how they are split, how they are augmented."""

    name: str = MISSING  # digits, cifar10, cifar100, imagefolder
    root: str = option(MISSING, decides=Decides.PLACE)
    image_size: int | None = option(
        None, low=1, high=65536
    )  # pixels; None keeps the data set's own
    # how an oblong image becomes a square: distorted, its centre cut out, or black around it
    resize: str = option("crop", choices=("stretch", "crop", "pad"))
    # of the channels, in units of 1 (pixel / 255), as a loaded network's images were normalised;
    # None: those of the train split
    mean: list[float] | None = option(None, low=0, high=1)
    std: list[float] | None = option(None, above=0, high=1)
    validation: float = option(0.1, above=0, below=1)  # share of the train split held out
    split_seed: int = option(0, low=0, high=2**32 - 1)  # of the validation split
    train_limit: int | None = option(None, low=2)  # images to train on (after the split)
    on_corrupt: str = option("refuse", choices=("refuse", "skip"), decides=Decides.PLACE)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    """SGD with Nesterov momentum, linear warm-up and cosine decay, for every stage."""

    batch_size: int = option(128, low=2)
    momentum: float = option(0.9, low=0, below=1)
    weight_decay: float = option(5e-4, low=0, below=1)  # of weights alone, see make_optimizer
    label_smoothing: float = option(0.0, low=0, below=1)
    warmup: float = option(0.05, low=0, below=1)  # share of a stage's steps
    eval_batch_size: int = option(500, low=1, decides=Decides.NOTHING)
    device: str = option("auto", decides=Decides.REPEAT)  # auto, cpu, cuda, cuda:N
    precision: str = option("auto", choices=("auto", "fp32", "bf16"))
    compile: str = option("auto", choices=("auto", "true", "false"), decides=Decides.REPEAT)


def targets() -> list[str]:
    """Returns the runtimes that networks can be quantized for."""
    return [name for name, runtime in RUNTIMES.items() if runtime.scheme]


@dataclass
class TargetConfig:
    """The engines that a network is quantized for."""

    names: list[str] = option([REFERENCE], choices=targets)
    symmetric: bool = False  # activations INT8 with zero point 0, where an engine needs it
    # What becomes of the inputs of an add (see `Scheme`); auto: what the engines want.
    sums: str = option("auto", choices=("auto", "both", "clip", "skip"))

    def scheme(self) -> Scheme:
        """Returns how all of them want it quantized.

        Raises:
            UserError: they want it differently, or there are none.
        """
        schemes = {get(name).scheme or Scheme(): name for name in self.names}
        if not schemes:
            raise UserError(f"target.names=[] is empty; give one of {', '.join(targets())}")
        scheme, *others = schemes
        if others:
            raise UserError(
                f"target.names=[{','.join(self.names)}]: {schemes[others[0]]} wants quantizers in "
                f"other places than {schemes[scheme]}; a network is trained for one of these"
            )
        sums = cast(Sums, scheme.sums if self.sums == "auto" else self.sums)
        return replace(scheme, symmetric=self.symmetric or scheme.symmetric, sums=sums)


@dataclass
class RuntimeConfig:
    """What latency is measured in, and how (see `pqd.measure.protocol`)."""

    names: list[str] = option(
        [name for name, runtime in RUNTIMES.items() if runtime.usual], choices=lambda: RUNTIMES
    )
    threads: list[int] = option([1, 0], low=0)  # 0 is all cores; equal counts are measured once
    batch_sizes: list[int] = option([1], low=1)
    min_calls: int = option(200, low=1, high=1_000_000)  # timed calls per model at least,
    min_seconds: float = option(3.0, low=0, high=3600)  # and timed seconds, over all blocks
    blocks: int = option(10, low=1, high=1000)
    max_interval: float = option(0.1, above=0)  # a 95 % interval wider than this share is noisy
    seed: int = option(0, low=0)  # of the order of the blocks and of the bootstrap

    def first(self, asks: str) -> tuple[str, int, int]:
        """Returns the runtime, thread count and batch size whose latency something goes by.

        Args:
            asks: the setting that does, for messages; without one a list may be empty.

        Raises:
            UserError: a list is empty, so that nothing is measured.
        """
        for key in ("names", "threads", "batch_sizes"):
            if not getattr(self, key):
                raise UserError(f"runtime.{key}=[] is empty; {asks} goes by its first entry")
        return self.names[0], self.threads[0], self.batch_sizes[0]


@dataclass
class ExportConfig:
    """The form of the ONNX files."""

    # They take pixels, uint8 [B, H, W, C], and normalise them; else float32 [B, C, H, W].
    uint8_input: bool = False


@dataclass
class LoggerConfig:
    """Where metrics go besides the run's folder."""

    name: str = option(MISSING, choices=("wandb", "none"))
    project: str | None = None  # None: WANDB_PROJECT, else pqd
    entity: str | None = None  # None: WANDB_ENTITY, else the user's default
    group: str | None = None  # None: the sweep's folder
    tags: list[str] = option([])  # besides order, backbone, data set, seed; none: WANDB_TAGS
    # auto: WANDB_MODE, else online when logged in
    mode: str = option("auto", choices=("auto", "online", "offline"))


@dataclass
class CacheConfig:
    """Finished stages, shared by all runs (content-addressed)."""

    enabled: bool = True  # False: a run keeps its stages in its own folder
    dir: str = "cache"


@dataclass
class Config:
    """The configuration of one run, but for its stages: `pqd.schema.schema` adds them."""

    seed: int = option(0, decides=Decides.REPEAT)
    budget: float = option(1.0, above=0)  # factor of all stages' epochs
    order: OrderConfig = field(default_factory=OrderConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    export: ExportConfig = option(ExportConfig, decides=Decides.FILES)
    runtime: RuntimeConfig = option(RuntimeConfig, decides=Decides.FIGURES)
    logger: LoggerConfig = option(LoggerConfig, decides=Decides.NOTHING)
    cache: CacheConfig = option(CacheConfig, decides=Decides.NOTHING)
    # What a run returns to a sweeper that optimizes: one figure, or a list of several.
    objectives: list[str] = option(
        ["validation_accuracy"], choices=lambda: OBJECTIVES, decides=Decides.NOTHING
    )
    # Validation accuracy, %, below which a run stops after a stage: +stop_below.prune=80. A search
    # sets it.
    stop_below: dict[str, float] = option(dict, decides=Decides.NOTHING)
    # Settings that a search chose; a report shows all its runs on one frontier.
    searched: list[str] = option([], decides=Decides.NOTHING)
    limits: dict[str, float] = option(dict, decides=Decides.NOTHING)  # and what it kept to
    dry_run: bool = option(False, decides=Decides.NOTHING)  # checks everything and trains nothing
    # Ends the name and the folder of a run; a sweep adds what it varies, e.g. _prune.lr=0.01.
    suffix: str = option("", decides=Decides.NOTHING)

    def of(self, stage: str) -> StageSettings:
        """Returns the settings of a stage."""
        settings = getattr(self, stage)
        assert isinstance(settings, StageSettings)
        return settings

    def epochs(self, stage: str) -> int:
        """Returns for how many epochs a stage trains: scaled by `budget`, at least one."""
        return max(1, round(self.of(stage).epochs * self.budget))
