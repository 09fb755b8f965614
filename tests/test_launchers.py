"""Sweeps through Hydra's launchers: in waves, on one cache, and killed in the middle."""

import itertools
import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import kill
import small_sweeps as sweeps
from pqd import config
from pqd.config import STAGES
from pqd.waves import entries, waves

SIX = ["".join(order) for order in itertools.permutations("pqd")]


@pytest.fixture(scope="module")
def composed():
    """The composed configuration of the demo."""
    config.register()
    with initialize_config_dir(str(sweeps.TRAIN.with_name("conf")), version_base="1.3"):
        return compose("config", ["experiment=demo"])


@pytest.fixture
def job(composed):
    """Gives the configuration of a job with an order and some settings changed."""

    def change(order, **changes):
        cfg = composed.copy()
        cfg.order.name = order
        cfg.order.stages = [next(s for s in STAGES if s[0] == letter) for letter in order]
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return cfg

    return change


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a finished sweep, one job after another."""
    folder = tmp_path_factory.mktemp("reference")
    sweeps.finish(sweeps.start(folder, sweeps.THREE), folder)
    return folder


def test_six_orders_take_three_waves(job):
    orders = ["pqd", "pdq", "qpd", "qdp", "dpq", "dqp"]
    wanted = [entries(job(order)) for order in orders]
    launched = [[orders[i] for i in wave] for wave in waves(wanted)]
    assert launched == [["pqd"], ["pdq", "qpd", "dpq"], ["qdp", "dqp"]]
    # A baseline and its export, 15 stages, six artifacts.
    assert len(set(itertools.chain(*wanted))) == 1 + 1 + 15 + 6


@given(st.lists(st.sets(st.integers(0, 20), max_size=5), max_size=12))
def test_in_a_wave_nobody_waits_for_another(wanted):
    wanted = [[str(name) for name in names] for names in wanted]
    result = waves(wanted)
    assert sorted(itertools.chain(*result)) == list(range(len(wanted)))
    made = set()
    for wave in result:
        wishes = Counter(name for i in wave for name in wanted[i] if name not in made)
        assert set(wishes.values()) <= {1}
        made |= set(wishes)


@pytest.mark.parametrize(
    ("key", "value", "stages_in_common"),
    [
        ("runtime.min_calls", 3, 4),
        ("train.eval_batch_size", 3, 4),
        ("train.epochs.distill", 3, 3),
        ("distill.temperature", 2, 3),
        ("quantize.calibration_batches", 3, 2),
        ("train.lr.prune", 0.3, 1),
        ("baseline.checkpoint", "x", 0),
        ("train.momentum", 0.3, 0),
        ("dataset.augment.flip", True, 0),
        ("seed", 3, 0),
        ("cache.dir", "elsewhere", 0),
    ],
)
def test_a_setting_parts_the_stages_it_reaches(job, key, value, stages_in_common):
    plain, changed = entries(job("pqd")), entries(job("pqd", **{key: value}))
    common = [a == b for a, b in zip(plain[:4], changed[:4], strict=True)]
    assert common == [i < stages_in_common for i in range(4)]
    assert len(waves([plain, changed])) == (2 if stages_in_common else 1)


def test_without_a_cache_all_jobs_start_at_once(job):
    wanted = [entries(job(order, **{"cache.enabled": False})) for order in SIX]
    assert waves(wanted) == [[0, 1, 2, 3, 4, 5]]


class Noting:
    """Notes what a launcher is told; the jobs named in `failing` fail, `crash` takes all down."""

    def __init__(self, failing=(), crash=()):
        self.told, self.failing, self.crash = [], failing, crash

    def launch(self, job_overrides, initial_job_idx):
        self.told.append((initial_job_idx, [job[0].split("=")[1] for job in job_overrides]))
        return [self.end(order) for order in self.told[-1][1]]

    def end(self, order):
        if order in self.crash:
            raise RuntimeError(f"{order} crashed")
        if order in self.failing:
            return JobReturn(status=JobStatus.FAILED, _return_value=ValueError(order))
        return JobReturn(status=JobStatus.COMPLETED)


class NotingJoblib:
    """Notes how many workers the joblib launcher would start."""

    def __init__(self, n_jobs):
        self.joblib, self.workers = {"n_jobs": n_jobs}, []

    def launch(self, job_overrides, initial_job_idx):
        self.workers.append(self.joblib["n_jobs"])
        return []


@pytest.fixture
def sweep(job, tmp_path):
    """Sweeps the six orders with the given launcher."""
    # Hydra's scan for plugins executes their modules again.
    plugin = Plugins.instance().class_name_to_class["hydra_plugins.pqd_waves.WaveSweeper"]

    def run(launcher):
        sweeper = plugin(max_batch_size=None)
        sweeper.launcher = launcher
        sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
        loader = SimpleNamespace(load_sweep_config=lambda _, job_: job(job_[0].split("=")[1]))
        sweeper.hydra_context = SimpleNamespace(config_loader=loader)
        return sweeper.sweep(["order=pqd,pdq,qpd,qdp,dpq,dqp"])

    return run


LAUNCHED = [(0, ["pqd"]), (1, ["pdq", "qpd", "dpq"]), (4, ["qdp", "dqp"])]


def test_the_sweeper_numbers_jobs_across_waves(sweep, tmp_path):
    launcher = Noting()
    assert [len(results) for results in sweep(launcher)] == [1, 3, 2]
    assert launcher.told == LAUNCHED
    assert (tmp_path / "sweep" / "multirun.yaml").exists()


@pytest.mark.parametrize(
    ("failing", "crash", "error"),
    [
        (["qpd", "dqp"], [], (ValueError, "qpd")),
        ([], ["pqd"], (RuntimeError, "pqd")),
        (["dqp"], ["pdq"], (ValueError, "dqp")),
    ],
)
def test_a_failure_stops_no_later_wave(sweep, failing, crash, error):
    launcher = Noting(failing, crash)
    with pytest.raises(error[0], match=error[1]):
        sweep(launcher)
    assert launcher.told == LAUNCHED


def test_joblib_has_no_more_workers_than_jobs(sweep):
    """So that each has the greatest share of the cores."""
    launcher = NotingJoblib(2)
    sweep(launcher)
    assert launcher.workers == [1, 2, 2]
    assert launcher.joblib["n_jobs"] == 2


@pytest.mark.slow
def test_waves_part_what_the_cache_parts(reference):
    """The names by which jobs are put into waves stand for the keys of the stages."""
    pairs = set()
    for result in (reference / "sweep").glob("*/result.json"):
        cfg = OmegaConf.load(result.parent / ".hydra" / "config.yaml")
        keys = [stage["key"] for stage in json.loads(result.read_text())["stages"]]
        pairs |= set(zip(entries(cfg), keys, strict=False))
    assert len(pairs) == len(dict(pairs)) == len({key for _, key in pairs}) == 4


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
