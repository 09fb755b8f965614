"""Sweeps through Hydra's launchers: at once on one cache, and killed in the middle."""

import json
import random
import time
from collections import Counter

import psutil
import pytest
from omegaconf import OmegaConf

import kill
import small_sweeps as sweeps
from pqd import result, schema
from pqd.sweep.waves import wanted


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a finished sweep, one job after another."""
    folder = tmp_path_factory.mktemp("reference")
    sweeps.finish(sweeps.start(folder, sweeps.THREE), folder)
    return folder


@pytest.mark.slow
def test_waves_part_what_the_cache_parts(reference):
    """The names by which jobs are put into waves stand for the keys of the stages."""
    pairs = set()
    for path in (reference / "sweep").glob("*/result.json"):
        found = result.read(path.parent)
        settings = OmegaConf.to_object(OmegaConf.merge(schema.schema(), found.config))
        keys = [stage.key for stage in found.stages]
        pairs |= set(zip(wanted(settings), keys, strict=False))
    assert len(pairs) == len(dict(pairs)) == len({key for _, key in pairs}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "worker", "dead"),
    # A worker of joblib takes the others down with it.
    [("joblib", "loky.backend.popen", "12"), ("submitit_local", "submitit.core._submit", "1")],
)
def test_a_job_that_dies_is_named_and_the_others_end(tmp_path, launcher, worker, dead):
    """In the second of three waves; its other job is waited for, and the third one launched."""
    orders = "order=partial/none,partial/pq,partial/d,partial/pd"
    epochs = ("baseline.epochs=1", "prune.epochs=9", "quantize.epochs=1", "distill.epochs=9")
    process = sweeps.start(tmp_path, orders, f"hydra/launcher={launcher}", *epochs)
    while set("12") - (status := statuses(tmp_path / "sweep")).keys():
        time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "sweep.log").read_text()
    assert status == {"0": "completed", "1": "running", "2": "running"}
    family = psutil.Process(process.pid).children(recursive=True)
    jobs = [child for child in family if worker in " ".join(child.cmdline())]
    min(jobs, key=lambda job: (job.create_time(), job.pid)).kill()

    assert process.wait() == 1
    expected = dict.fromkeys("0123", "completed") | dict.fromkeys(dead, "running")
    assert statuses(tmp_path / "sweep") == expected
    log = (tmp_path / "sweep.log").read_text()
    named = [line for line in log.splitlines() if " died: killed from outside, " in line]
    assert [line[: len("pqd: 1_")] for line in named] == [f"pqd: {number}_" for number in dead]
    assert f"\n{4 - len(dead)} of 4 runs completed; folder: " in log
    assert "Traceback" not in log


def statuses(sweep):
    """By the number of the job."""
    results = sweep.glob("*/result.json")
    return {path.parent.name[0]: json.loads(path.read_text())["status"] for path in results}


@pytest.mark.slow
def test_two_sweeps_at_once_through_two_launchers(tmp_path, reference):
    """Through joblib and submitit, on one cache: the results of a quiet sweep, nothing twice."""
    launchers = ("joblib", "submitit_local")
    running = [
        sweeps.start(tmp_path, sweeps.THREE, f"hydra/launcher={name}", name=name)
        for name in launchers
    ]
    for process, name in zip(running, launchers, strict=True):
        sweeps.finish(process, tmp_path, name)
    trained = Counter()
    for name in launchers:
        assert sweeps.figures(tmp_path / name) == sweeps.figures(reference / "sweep")
        assert sweeps.damaged_files(tmp_path / name) == []
        for record in sweeps.records(tmp_path / name).values():
            trained.update(s["key"] for s in record["stages"] if not s["cached"])
    assert sorted(trained.values()) == [1, 1, 1, 1]
    assert sweeps.entries(tmp_path / "cache") == sweeps.entries(reference / "cache")
    assert sweeps.leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_killed_sweep_ends_like_a_quiet_one(tmp_path, reference):
    """Three of the kills of kill.py, within the first stages of a sweep."""
    [(kills, _)] = kill.storm(tmp_path, reference, 3, 12, random.Random(0), [sweeps.THREE])
    assert kills == 3
