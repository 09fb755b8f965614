"""W&B's sweep files: the command that an agent would issue runs, and what it leaves behind."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from wandb import env as names
from wandb.sdk.launch.sweeps import utils
from wandb.sdk.lib import config_util

from pqd import result, tracking
from pqd.config import DatasetConfig
from pqd.data import load_dataset
from wandb_reader import read, table
from wandb_runs import completed

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "conf/wandb").glob("*.yaml"))
pytestmark = pytest.mark.usefixtures("own_wandb")


def first(parameter):
    """A value that an agent could be told."""
    return parameter.get("value", parameter.get("values", [parameter.get("max")])[0])


def issued(sweep, args):
    """The command as `wandb.wandb_agent.Agent` puts it together."""
    known = utils.create_sweep_command_args({"args": args})
    known |= {"env": ["/usr/bin/env"], "program": [sweep["program"]], "interpreter": ["python"]}
    command = []
    for part in map(str, utils.create_sweep_command(sweep["command"])):
        whole = part.startswith("${") and part.endswith("}")
        command += known[part[2:-1]] if whole else [part]
    return command


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_agents_command_runs_as_it_is(path, tmp_path):
    sweep = yaml.safe_load(path.read_text())
    args = {key: {"value": first(given)} for key, given in sweep["parameters"].items()}
    params = tmp_path / "sweep/params.yaml"
    config_util.save_config_file_from_dict(str(params), args)
    small = ["debug=fast", "dataset=digits", "backbone=resnet8", "logger.name=wandb"]
    places = [f"hydra.run.dir={tmp_path}", f"cache.dir={tmp_path}/cache"]
    given = {names.SWEEP_ID: "s1", names.RUN_ID: "r1", names.SWEEP_PARAM_PATH: str(params)}
    given["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [*issued(sweep, args), *small, *places]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found, run = read(tmp_path), result.read(tmp_path)
    assert found.run["run_id"] == "r1"
    assert found.run["sweep_id"] == "s1"
    for key, value in args.items():
        node = found.config
        for part in key.split("."):
            node = node[part]
        assert node == value["value"]
    name = sweep["metric"]["name"]
    assert found.summary[name] == run.stages[-1].validation_accuracy
    rows = table(tmp_path, "layers")
    layers = [layer for layer in run.final.layers if layer.weight_shape]
    assert [row["layer"] for row in rows] == [layer.name for layer in layers]
    assert [row["bits"] for row in rows] == [layer.bits for layer in layers]
    assert [row["sparsity_percent"] for row in rows] == pytest.approx(
        [100 * layer.zeros for layer in layers]
    )
    assert rows[0]["time_percent/onnxruntime"] > 0
    (pairs,) = (path for path in tmp_path.glob("wandb/*run-*/files/media/table/test/confusion*"))
    assert pairs.stat().st_size


def test_predictions_and_confusion_matrix(wandb_config, tmp_path):
    dataset = load_dataset(DatasetConfig("digits", ""))
    labels = dataset.test.labels.numpy()
    predicted = labels.copy()
    predicted[:40] = (labels[:40] + 1) % 10
    np.save(tmp_path / "predictions.npy", predicted)
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.predictions(dataset, tmp_path / "predictions.npy")
        tracker.finish(completed(), [])
    found = read(tmp_path)
    rows = table(tmp_path, "test/predictions")
    assert [row["correct"] for row in rows] == [False] * 24 + [True] * 8
    assert [row["class"] for row in rows[:24]] == [str(label) for label in labels[:24]]
    assert [row["predicted"] for row in rows[:24]] == [str(label) for label in predicted[:24]]
    # With its images the table is an artifact, which the page shows.
    logged = next(a for a in found.artifacts if "predictions" in a["name"])
    files = {file["path"]: file["local_path"] for file in logged["manifest"]["contents"]}
    content = json.loads(Path(files["test/predictions.table.json"]).read_text())
    image = files[content["data"][0][0]["path"]]
    shown = np.asarray(Image.open(image))
    assert (shown == dataset.test.images[0].numpy().squeeze()).all()
    pairs = {
        (row["Actual"], row["Predicted"]): row["nPredictions"]
        for row in table(tmp_path, "test/confusion_matrix_table")
    }
    expected = Counter(zip(map(str, labels), map(str, predicted), strict=True))
    assert {pair: count for pair, count in pairs.items() if count} == expected
