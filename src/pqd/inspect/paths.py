"""`pqd inspect`: an ONNX file, a package or a run."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from pqd.errors import UserError
from pqd.inspect.look import IMAGES, Inspection, look
from pqd.inspect.words import columns
from pqd.measure.graph import Input, input_of, is_quantized
from pqd.result import Layer

log = logging.getLogger(__name__)


def inspect(path: Path, runtimes: Sequence[str], float_: Path | None = None) -> Inspection:
    """Looks at every layer of an ONNX file, a package or a run's `model.onnx`.

    Of a run the FP32 counterpart is in its folder, and errors of outputs are those on its first
    test images, where its data set is at hand.

    Args:
        path: an `.onnx` or `.pqd` file, or the folder of a completed run.
        runtimes: for the shares of time.
        float_: the same network in FP32, an `.onnx` or `.pqd` file; of a run its own.

    Raises:
        UserError: the path is none of these, or its model cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, images = _onnx(path, Path(folder, "model.onnx")), []
        given = {f"{folder}/model.onnx": path, f"{folder}/float.onnx": float_ or path}
        if float_ is not None:
            float_ = _onnx(float_, Path(folder, "float.onnx"))
        elif path.is_dir() and is_quantized(model):
            float_ = in_float(path, Path(folder, "float.onnx"))
            images = _test_images(path, input_of(model))
        package = path / "model.pqd" if path.is_dir() else path if path.suffix == ".pqd" else None
        try:
            return look(model, runtimes=runtimes, package=package, float_=float_, images=images)
        except UserError as error:
            line = str(error)
            for unpacked, name in given.items():
                line = line.replace(unpacked, str(name))
            raise UserError(line) from None


def in_float(run: Path, temporary: Path) -> Path:
    """Returns a run's network in FP32 as an ONNX file: `pruned.onnx`, or made anew.

    Args:
        run: a folder with `model.onnx`, `model.safetensors` and `recipe.json`.
        temporary: a file to write, where that is needed.
    """
    from pqd.export.onnx_file import take_pixels, write_onnx
    from pqd.networks import load_blueprint, load_network

    if (pruned := run / "pruned.onnx").is_file():
        return pruned
    taken, blueprint = input_of(run / "model.onnx"), load_blueprint(run)
    write_onnx(load_network(run, quantized=False), temporary, taken.shape, {})
    if taken.uint8 and blueprint.mean and blueprint.std:
        take_pixels(temporary, blueprint.mean, blueprint.std)
    return temporary


def few(batches: Iterable[Any]) -> list[NDArray[Any]]:
    """Returns the first images of batches, as batches of one."""
    singles = (np.asarray(image)[None] for batch in batches for image in batch)
    return list(islice(singles, IMAGES))


def layer_table(title: str, layers: Sequence[Layer]) -> Table:
    """Returns layers as a table for the terminal."""
    table, shown = Table(title=escape(title), title_justify="left"), columns(layers)
    for column in shown:
        justify: JustifyMethod = "left" if column.textual else "right"
        table.add_column(column.title, justify=justify, no_wrap=column.title == "layer")
    for layer in layers:
        table.add_row(*(escape(column.text(layer)) for column in shown))
    return table


def _onnx(path: Path, temporary: Path) -> Path:
    """The ONNX file of a path; a package is unpacked into a temporary file."""
    if path.is_dir():
        if not (model := path / "model.onnx").is_file():
            raise UserError(f"{path} is not the folder of a completed run: it has no model.onnx")
        return model
    if path.suffix not in (".onnx", ".pqd"):
        raise UserError(f"{path} is neither a run's folder nor an .onnx or .pqd file")
    if path.suffix == ".onnx":
        return path
    from pqd.package import unpack

    unpack(path, temporary)
    return temporary


def _test_images(run: Path, taken: Input) -> list[NDArray[Any]]:
    from pqd.measure.images import dataset_of, test_batches

    try:
        dataset = dataset_of(run)
    except UserError as error:
        log.warning(
            "%s: errors of outputs are left out, as its data set is not here: %s", run, error
        )
        return []
    return few(test_batches(dataset, taken, IMAGES))
