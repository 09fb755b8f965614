"""Reads an offline run of W&B back with wandb's own reader."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import wandb


def read(folder):
    """The records of the one run in a folder, by type, with wandb's own reader."""
    wandb.teardown()  # as at the end of the process: what is written last is on the disk after it
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", path]
    done = subprocess.run([*command, path.parents[1]], capture_output=True, text=True, check=True)
    records = SimpleNamespace(
        history=[], summary={}, config={}, metrics={}, artifacts=[], exit=None
    )
    for record in map(json.loads, done.stdout.splitlines()):
        kind = record["type"]
        if kind == "run":
            records.run = record["run"]
            records.config |= record["run"]["config"]["update"]
        elif kind == "history":
            item = record["history"]["item"]
            records.history.append({k: v for k, v in item.items() if not k.startswith("_")})
        elif kind == "summary":
            records.summary |= record["summary"]["update"]
        elif kind == "config":
            records.config |= record["config"]["update"]
        elif kind == "metric" and "glob_name" in record["metric"]:
            records.metrics[record["metric"]["glob_name"]] = record["metric"]["step_metric"]
        elif kind == "artifact":
            records.artifacts.append(record["artifact"])
        elif kind == "exit":
            records.exit = record["exit"]["exit_code"]
    return records


def table(folder, name):
    """The rows of a logged table of the one run in a folder, as dicts."""
    (path,) = folder.glob(f"wandb/*run-*/files/media/table/{name}_*.table.json")
    content = json.loads(path.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
