"""A stage under way on disk: its network, optimizer and history after the last whole epoch."""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pqd.errors import UserError, one_line

log = logging.getLogger(__name__)


def save(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: the file, replaced.
        run: what must be the same for training to resume from it.
        model: its state is kept.
        optimizer: its state is kept.
        history: the metrics of every finished epoch.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"run": run, "history": history}, buffer)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write the checkpoint {path}: {error.strerror}") from error


def resume(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> list[dict[str, float]]:
    """Loads a checkpoint into model and optimizer; a file that does not fit changes neither.

    Returns:
        The metrics of the finished epochs; none without a file that fits.

    Raises:
        UserError: the system does not hand the file over, which may be sound.
        MemoryError, torch.OutOfMemoryError: there is no room for it now.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if state["run"] != run:
            raise ValueError(f"it belongs to a run with {state['run']}, this one has {run}")
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if {name: value.shape for name, value in state["model"].items()} != shapes:
            raise ValueError("it belongs to another network")
        history = list(state["history"])
        optimizer.load_state_dict(state["optimizer"])
    except (MemoryError, torch.OutOfMemoryError):
        raise  # to start anew would replace what another try can use
    except Exception as error:
        log.warning("ignoring the checkpoint %s and starting anew: %s", path, one_line(error))
        return []
    model.load_state_dict(state["model"])
    return history
