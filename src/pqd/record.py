"""`result.json`: the one record of a run that reports, W&B and sweeps read."""

import hashlib
import json
import os
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pqd.config import Config
from pqd.errors import UserError

SCHEMA = 1
FILE = "result.json"


def run_name(config: Config) -> str:
    """Returns what a run is called in tables and W&B."""
    parts = [config.backbone.name, config.dataset.name, config.order.name]
    if "prune" in config.order.stages:
        parts.append(f"s{config.prune.sparsity:g}")
    if "quantize" in config.order.stages and config.quantize.weight_bits != 8:
        parts.append(f"w{config.quantize.weight_bits}")
    return "_".join((*parts, f"seed{config.seed}"))


def config_hash(config: Config) -> str:
    """Returns 16 hex digits that two runs share if they are the same run."""
    # Where stages are kept and metrics go does not make it another run.
    identity = {k: v for k, v in asdict(config).items() if k not in ("cache", "logger")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def new_record(config: Config) -> dict[str, Any]:
    """Returns the record of a run that has just started; one that stays so has died."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "reason": None,
        "name": run_name(config),
        "config_hash": config_hash(config),
        "config": asdict(config),
        "stages": [],
        "final": None,
        "provenance": now(),
        "files": {},
    }


def now() -> dict[str, str]:
    """When something is done: `started`, in UTC, to the second."""
    return {"started": datetime.now(UTC).isoformat(timespec="seconds")}


def check_free(folder: Path, config: Config) -> None:
    """Sees to it that a run does not replace another one's results.

    Raises:
        UserError: the folder holds the results of another configuration, finished or under way.
    """
    try:
        there = read_json(folder / FILE)
    except (OSError, ValueError):  # none, or nothing that could be lost
        return
    same = there.get("config_hash") == config_hash(config)
    if there.get("status") in ("completed", "running") and not same:
        raise UserError(
            f"{folder} holds another configuration's results ({there['name']}, "
            f"{there['status']}), which would be lost; choose another folder or remove this one"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically, whoever else writes it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object."""
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content
