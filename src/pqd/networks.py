"""A network on disk: safetensors, and a recipe from which it is rebuilt.

The recipe names the backbone and the constraints attached; rebuilding is backbone, then
constraints, then state. No pickle is ever loaded.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from pqd import constraints, files
from pqd.config import BackboneConfig
from pqd.errors import UserError, naming, one_line
from pqd.weights import WEIGHTS, load_weights

FORMAT = 2
_WEIGHT_SOURCES = ("pretrained", "pretrained_cfg", "checkpoint_path")
RECIPE = "recipe.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blueprint:
    """What a backbone is built from, and the images it is for."""

    backbone: BackboneConfig
    classes: int
    channels: int
    image_size: int  # pixels
    # how its images are normalised, in units of 1; None where an older file does not say
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    # what a function of one's own builds, by `structure_of`; None where the backbone's name tells
    structure: str | None = None

    def examined(self) -> "Blueprint":
        """Returns it with the structure that a function of one's own gives it at present.

        Raises:
            UserError: see `pqd.backbones.build`.
        """
        own = "." in self.backbone.builder
        return replace(self, structure=structure_of(self.build())) if own else self

    def build(self) -> fx.GraphModule:
        """Builds the dense network; weights come from torch's global generator."""
        from pqd import backbones

        return backbones.build(self.backbone, self.classes, self.channels, self.image_size)


def save_network(model: fx.GraphModule, blueprint: Blueprint, folder: Path) -> None:
    """Writes `model.safetensors` and `recipe.json` into a folder that exists."""
    recipe = {
        "format": FORMAT,
        "blueprint": asdict(blueprint),
        "constraints": constraints.describe(model),
        "torch": torch.__version__,
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    files.write_tensors(folder / WEIGHTS, state)
    files.write_json(folder / RECIPE, recipe)


def load_network(path: Path, *, quantized: bool = True) -> fx.GraphModule:
    """Rebuilds a network from a folder written by `save_network`, or its `model.safetensors`.

    Args:
        path: the folder or the file.
        quantized: False leaves the fake-quantizers out: the same weights and masks in FP32.

    Raises:
        UserError: a file is missing, is no recipe of this format, or does not fit the backbone.
    """
    folder = path.parent if path.is_file() else path
    recipe = _recipe(folder)
    with _naming(folder):
        blueprint = _blueprint(recipe)
        model = blueprint.build()
        if blueprint.structure and blueprint.structure != structure_of(model):
            builder = blueprint.backbone.builder
            log.warning("%s: %s builds another network than the one saved", folder, builder)
        constraints.rebuild(model, recipe["constraints"])
    load_weights(model, folder / WEIGHTS)
    if not quantized:
        constraints.without_integers(model)
    return model


def load_blueprint(path: Path) -> Blueprint:
    """Reads what the dense network in a folder (as of `load_network`) is built from.

    Raises:
        UserError: the folder holds no recipe of this format.
    """
    folder = path.parent if path.is_file() else path
    recipe = _recipe(folder)
    with _naming(folder):
        return _blueprint(recipe)


def built_from(path: Path) -> dict[str, Any] | None:
    """Returns what, besides its weights, the outputs of a network (as of `load_network`) depend on.

    Returns:
        What it is built from and its constraints; None where there is no recipe that can be read.
    """
    folder = path.parent if path.is_file() else path
    try:
        recipe = _recipe(folder)
        with _naming(folder):
            return {"blueprint": asdict(_blueprint(recipe)), "constraints": recipe["constraints"]}
    except UserError:
        return None


def structure_of(model: fx.GraphModule) -> str:
    """Returns 16 hex digits for the layers, their settings and the calls of a dense network."""
    return hashlib.sha256(str(model).encode()).hexdigest()[:16]


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    try:
        recipe = files.read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is not a recipe written by pqd") from None
    if recipe.get("format") == 1:
        with _naming(folder):
            return recipe | {"constraints": _of_format_1(recipe)}
    if recipe.get("format") != FORMAT:
        raise UserError(f"{path} is not a recipe of format {FORMAT}")
    return recipe


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Names the recipe of a folder in whatever keeps it from being followed."""
    path = folder / RECIPE
    try:
        with naming(str(path)):
            yield
    except UserError:
        raise
    except Exception as error:  # a recipe that was not written here can be wrong in any way
        key = isinstance(error, KeyError)
        reason = f"it lacks {error}" if key else one_line(error, named=True)
        raise UserError(f"{path} describes no network that can be rebuilt: {reason}") from error


def _of_format_1(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Brings the constraints that the first version wrote into today's form."""
    masks, code_max = recipe["masks"], recipe["code_max"]
    found: list[dict[str, Any]] = [{"constraint": "mask", "layers": masks}] if masks else []
    quantized = [{"constraint": "fake_quant", "code_max": code_max}] if code_max else []
    return found + quantized


def _blueprint(recipe: dict[str, Any]) -> Blueprint:
    backbone = BackboneConfig(**recipe["blueprint"]["backbone"])
    if backbone.builder == "timm":
        # The weights are in the file beside the recipe; a recipe must not fetch or open others.
        backbone.kwargs = {k: v for k, v in backbone.kwargs.items() if k not in _WEIGHT_SOURCES}
    given: dict[str, Any] = recipe["blueprint"] | {"backbone": backbone}
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    return Blueprint(**given)
