"""Small sweeps of train.py, started as a user starts them, and what two of them have in common."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

from pqd.cache import Cache, file_digest

TRAIN = Path(__file__).parents[1] / "train.py"
EPOCHS = ("baseline.epochs=3", "prune.epochs=2", "quantize.epochs=2", "distill.epochs=2")
SMALL = (
    "experiment=demo",
    "dataset.train_limit=128",
    *EPOCHS,
    "logger=none",
    "runtime.threads=[1]",
    "runtime.min_calls=2",
    "runtime.min_seconds=0",
    "runtime.blocks=2",
)
SIX = "order=glob(*)"
# Three jobs in two waves, and fewer models to export than in three of the six orders.
THREE = "order=partial/none,partial/pq,partial/d"

# What two runs of one configuration may differ in: times, places, and who trained a stage.
_VOLATILE = {"seconds", "images_per_s", "cached", "latency", "provenance", "measured", "cache"}
_VOLATILE |= {"time"}  # shares of layers


def start(folder, *arguments, name="sweep", cache="cache"):
    """Starts a sweep in its own process group; its output goes to `<folder>/<name>.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    places = (f"cache.dir={folder / cache}", f"hydra.sweep.dir={folder / name}")
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, TRAIN, "-m", *SMALL, *places, *arguments],
            cwd=folder,
            # Sums are rounded differently with another number of threads.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process, folder, name="sweep"):
    """Waits for a sweep to end well; one that hangs ends after a quarter of an hour."""
    try:
        status = process.wait(timeout=900)
    except subprocess.TimeoutExpired:
        process.kill()
        status = "too slow"
    assert status == 0, f"{status}: {(folder / f'{name}.log').read_text()[-4000:]}"


def records(sweep):
    """The results of a sweep, by the names of the runs."""
    found = [json.loads(path.read_text()) for path in sweep.glob("*/result.json")]
    assert len({record["name"] for record in found}) == len(found)
    return {record["name"]: record for record in found}


def figures(sweep):
    """All that must not depend on when, where and in how many pieces a sweep ran."""
    return {name: _stable(record) for name, record in records(sweep).items()}


def _stable(value):
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in _VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def damaged_files(sweep):
    """Files of the runs that are not what the results say."""
    return [
        path
        for result in sweep.glob("*/result.json")
        for name, file in json.loads(result.read_text())["files"].items()
        if file_digest(path := result.with_name(name)) != file["sha256"]
    ]


def entries(cache):
    """The entries of a cache: what each is, by its key; a damaged one is an error."""

    def refuse(folder):
        raise AssertionError(f"{folder} is damaged")

    here = Cache(cache)
    return {item.key: item.label for item in here.items() if here.get(item.key, "", refuse)}


def leftovers(folder):
    """What a finished sweep must not leave behind: unfinished work, and locks that are held."""
    patterns = ("*.partial", "*.checkpoint", "*.part", "*.tmp")
    found = [str(path) for pattern in patterns for path in folder.rglob(pattern)]
    for path in folder.rglob("*.lock"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(f"{path} is held")
    return found


def epochs_trained(log):
    """How many epochs a sweep's output reports."""
    return sum(line.split()[1:2] == ["epoch"] for line in log.splitlines())
