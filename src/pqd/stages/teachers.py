"""Teachers of distillation: networks from anywhere that take the student's images as their own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization
from torch.nn import functional

from pqd import options
from pqd.data import Dataset
from pqd.devices import channels_last
from pqd.errors import UserError, nearest, one_line
from pqd.networks import built_from, load_blueprint, load_network
from pqd.options import option
from pqd.weights import load_weights

KEY = "distill.teacher"


@dataclass
class ForeignTeacher:
    """A network that pqd did not train, and what its images were like."""

    backbone: str | None = None  # one of timm's, or of pqd's own
    checkpoint: str | None = option(None, digest=True)  # as `baseline.checkpoint`
    # pixels, and means and deviations of the channels in units of 1; None is what timm says of
    # the backbone, and of pqd's own backbones that they see what the student sees
    image_size: int | None = option(None, low=1)
    mean: list[float] | None = None
    std: list[float] | None = option(None, above=0)


Spec = str | ForeignTeacher  # a network that pqd saved, or one from elsewhere


class Teacher(nn.Module):
    """A network that gets images as it was trained on, made of the student's images."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        image_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Compares the images of both.

        Args:
            network: the teacher, which is not trained any more.
            dataset: of the student.
            image_size: the teacher's, in pixels.
            mean: of the channels, as the teacher's images are normalised; None: as the student's.
            std: their deviations, likewise.
        """
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        channels_last(self.network)
        self.image_size = image_size
        student = _channels(dataset.mean), _channels(dataset.std)
        own = _channels(mean or dataset.mean), _channels(std or dataset.std)
        self.renormalises = not all(map(torch.equal, own, student))
        self.register_buffer("scale", (student[1] / own[1]).float())
        self.register_buffer("shift", ((student[0] - own[0]) / own[1]).float())

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits [B, K] of the student's images [B, C, H, W]."""
        if self.renormalises:
            images = images * self.scale + self.shift
        if images.shape[-2:] != (size := (self.image_size, self.image_size)):
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(images)
        return logits


class Average(nn.Module):
    """Several teachers in one: the mean of their logits, as of an ensemble."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        """Asks all of `teachers`."""
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits [B, K] of the student's images [B, C, H, W]."""
        return torch.stack([teacher(images) for teacher in self.teachers]).mean(0)


def parse(teacher: Any, teachers: list[Any]) -> dict[str, Spec]:
    """Reads the settings `distill.teacher` and `distill.teachers`.

    Args:
        teacher: a path, or a `ForeignTeacher`.
        teachers: paths, and the fields of a `ForeignTeacher` by name.

    Returns:
        What is to be loaded, by its key; nothing where the run's own dense network teaches.

    Raises:
        UserError: it is none of these, or both are given.
    """
    one = {} if teacher in (None, ForeignTeacher()) else {KEY: teacher}
    several = named(teachers)
    if one and several:
        raise UserError(f"give {KEY} or {KEY}s, not both; all in the list are averaged")
    return {key: _spec(key, given) for key, given in (one | several).items()}


def named(teachers: list[Any]) -> dict[str, Any]:
    """Returns the entries of `distill.teachers` by their keys."""
    return {f"{KEY}s[{index}]": given for index, given in enumerate(teachers)}


def _spec(key: str, given: Any) -> Spec:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, dict):
        given = foreign(key, given)
    if not isinstance(given, ForeignTeacher) or not (given.backbone and given.checkpoint):
        raise UserError(
            f"{key} must be a folder saved by pqd, or have both a backbone (of timm, or pqd's own) "
            "and a checkpoint of it"
        )
    return given


def foreign(key: str, given: dict[str, Any]) -> ForeignTeacher:
    """Reads the fields of a `ForeignTeacher`.

    Args:
        key: the setting, for messages.
        given: its value.

    Raises:
        UserError: there is no such field, or a value is not accepted.
    """
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ForeignTeacher), given))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={given}: {str(error).splitlines()[0]}") from None
    assert isinstance(found, ForeignTeacher)
    options.check(found, f"{key}.")
    return found


def content(key: str, given: Any, digest: Callable[[str, Path], str] | None) -> Any:
    """Returns, of `distill.teacher` or one of `distill.teachers`, what a cache key depends on.

    Args:
        key: the setting, for messages.
        given: see `parse`.
        digest: as of `pqd.options.selected`.
    """
    if digest is None:
        return given
    if isinstance(given, dict) and "checkpoint" in given:
        whole = asdict(foreign(key, given))  # however much of it is spelled out
        return whole | {"checkpoint": digest(key, Path(str(given["checkpoint"])))}
    path = Path(str(given))
    return {"weights": digest(key, path), "built_from": built_from(path)}


def load(key: str, spec: Spec, dataset: Dataset) -> Teacher:
    """Loads a teacher for the images of a data set.

    Args:
        key: the setting that names it, for messages.
        spec: what to load.
        dataset: of the student.

    Raises:
        UserError: its file cannot be read, or it takes or returns something else.
    """
    name, classes = name_of(key, spec), len(dataset.classes)
    _, size, _, channels = dataset.train.images.shape
    teacher = (
        _load_saved(name, Path(spec), dataset)
        if isinstance(spec, str)
        else _load_foreign(key, spec, dataset, classes, channels, size)
    )
    try:
        with torch.inference_mode():
            logits: Tensor = teacher(torch.zeros(2, channels, size, size))
    except Exception as error:  # layers check their input in many ways
        raise UserError(f"{name} fails on {size}x{size} images: {one_line(error)}") from error
    if list(logits.shape) != [2, classes]:
        raise UserError(f"{name} returns {list(logits.shape)} for 2 images of {classes} classes")
    return teacher


def name_of(key: str, spec: Spec) -> str:
    """Returns what a teacher is called in messages."""
    if isinstance(spec, str):
        return f"{key}={spec}"
    return f"{key}.checkpoint={spec.checkpoint}"


def frozen(teacher: fx.GraphModule) -> fx.GraphModule:
    """Returns a teacher, in evaluation mode, as it runs fastest: batch norms are folded away.

    Those behind convolutions that carry no mask or fake-quantizer, that is.
    """
    folded: fx.GraphModule = optimization.fuse(teacher.eval(), no_trace=True)  # type: ignore[assignment]
    channels_last(folded.requires_grad_(False))
    return folded


def _load_saved(name: str, folder: Path, dataset: Dataset) -> Teacher:
    images = load_blueprint(folder)
    channels, classes = dataset.train.images.shape[-1], len(dataset.classes)
    for what, its, ours in (
        ("channels", images.channels, channels),
        ("classes", images.classes, classes),
    ):
        if its != ours:
            raise UserError(f"{name} has {its} {what}, dataset {dataset.name} has {ours} {what}")
    network = frozen(load_network(folder))
    return Teacher(network, dataset, images.image_size, images.mean, images.std)


def _load_foreign(
    key: str, spec: ForeignTeacher, dataset: Dataset, classes: int, channels: int, size: int
) -> Teacher:
    from pqd.backbones.build import BUILDERS

    assert spec.backbone
    assert spec.checkpoint
    mean, std = spec.mean, spec.std
    if spec.backbone in BUILDERS:
        size = spec.image_size or size
        network: Any = BUILDERS[spec.backbone](classes, channels, size)
    else:
        network = _of_timm(key, spec.backbone, classes, channels, spec.image_size)
        known = network.pretrained_cfg  # by timm, of the weights that it offers itself
        size = spec.image_size or known["input_size"][-1]
        if channels == len(known["mean"]):
            mean, std = mean or known["mean"], std or known["std"]
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise UserError(f"{key}.{what}={list(values)} must be {channels} numbers, as channels")
    load_weights(network, Path(spec.checkpoint))
    return Teacher(network, dataset, size, mean, std)


def _of_timm(key: str, name: str, classes: int, channels: int, image_size: int | None) -> Any:
    import timm  # takes seconds

    if not timm.is_model(name):
        near = nearest(name, timm.list_models(), most=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UserError(f"{key}.backbone={name} is unknown to timm {timm.__version__}{hint}")
    try:
        network: Any = timm.create_model(name, num_classes=classes, in_chans=channels)
        if image_size is not None and hasattr(network, "set_input_size"):
            network.set_input_size((image_size, image_size))  # of transformers
    except Exception as error:  # timm's networks check their arguments in many ways
        raise UserError(
            f"timm cannot build {key}.backbone={name}: {one_line(error, named=True)}"
        ) from error
    return network


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
