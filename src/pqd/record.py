"""`result.json`: the one record of a run that reports, W&B and sweeps read."""

import hashlib
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pqd.config import Config

SCHEMA = 1
FILE = "result.json"


def run_name(config: Config) -> str:
    """Returns what a run is called in tables and W&B."""
    parts = [config.backbone.name, config.dataset.name, config.order.name]
    if "prune" in config.order.stages:
        parts.append(f"s{config.prune.sparsity:g}")
    return "_".join((*parts, f"seed{config.seed}"))


def new_record(config: Config) -> dict[str, Any]:
    """Returns the record of a run that has just started."""
    resolved = asdict(config)
    # Where stages are kept and metrics go does not make it another run.
    identity = {k: v for k, v in resolved.items() if k not in ("cache", "logger")}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "status": "failed",
        "reason": "the run was stopped from outside",
        "name": run_name(config),
        "config_hash": digest[:16],
        "config": resolved,
        "stages": [],
        "final": None,
        "provenance": {"started": datetime.now(UTC).isoformat(timespec="seconds")},
        "files": {},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object."""
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content
