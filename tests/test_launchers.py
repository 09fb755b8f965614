"""Sweeps through Hydra's launchers: in waves, on one cache, and killed in the middle."""

import itertools
import json
import random
import time
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

import kill
import small_sweeps as sweeps
from pqd import result, schema
from pqd.errors import UserError
from pqd.identity import run_name, wanted
from pqd.sweep import finish
from pqd.sweep.waves import waves

SIX = ["".join(order) for order in itertools.permutations("pqd")]


@pytest.fixture
def hydra():
    """Hydra, with the configuration of train.py."""
    schema.register()
    with initialize_config_dir(str(sweeps.TRAIN.with_name("conf")), version_base="1.3"):
        yield GlobalHydra.instance().hydra


@pytest.fixture
def job(hydra):
    """Gives the configuration of a job with an order and some settings changed."""

    def change(order, *overrides):
        given = ["experiment=demo", f"order.name={order}", *overrides]
        return schema.parse(compose("config", given))

    return change


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a finished sweep, one job after another."""
    folder = tmp_path_factory.mktemp("reference")
    sweeps.finish(sweeps.start(folder, sweeps.THREE), folder)
    return folder


def test_six_orders_take_three_waves(job):
    orders = ["pqd", "pdq", "qpd", "qdp", "dpq", "dqp"]
    names = [wanted(job(order)) for order in orders]
    launched = [[orders[i] for i in wave] for wave in waves(names)]
    assert launched == [["pqd"], ["pdq", "qpd", "dpq"], ["qdp", "dqp"]]
    # A baseline and its export, 15 stages, six artifacts and the figures of each.
    assert len(set(itertools.chain(*names))) == 1 + 1 + 15 + 6 + 6


@given(st.lists(st.sets(st.integers(0, 20), max_size=5), max_size=12))
def test_in_a_wave_nobody_waits_for_another(wishes):
    names = [[str(name) for name in wish] for wish in wishes]
    launched = waves(names)
    assert sorted(itertools.chain(*launched)) == list(range(len(names)))
    made = set()
    for wave in launched:
        wishes = Counter(name for i in wave for name in names[i] if name not in made)
        assert set(wishes.values()) <= {1}
        made |= set(wishes)


@pytest.mark.parametrize(
    ("key", "value", "stages_in_common"),
    [
        ("runtime.min_calls", 3, 4),
        ("train.eval_batch_size", 3, 4),
        ("distill.epochs", 3, 3),
        ("distill.temperature", 2, 3),
        ("quantize.calibration_batches", 3, 2),
        ("prune.lr", 0.3, 1),
        ("baseline.checkpoint", "x", 0),
        ("train.momentum", 0.3, 0),
        ("dataset.augment.flip", "true", 0),
        ("seed", 3, 0),
        ("cache.dir", "elsewhere", 0),
    ],
)
def test_a_setting_parts_the_stages_it_reaches(job, key, value, stages_in_common):
    plain, changed = wanted(job("pqd")), wanted(job("pqd", f"{key}={value}"))
    common = [a == b for a, b in zip(plain[:4], changed[:4], strict=True)]
    assert common == [i < stages_in_common for i in range(4)]
    assert len(waves([plain, changed])) == (2 if stages_in_common else 1)


def test_without_a_cache_all_jobs_start_at_once(job):
    names = [wanted(job(order, "cache.enabled=false")) for order in SIX]
    assert waves(names) == [[0, 1, 2, 3, 4, 5]]


class Noting:
    """Notes what a launcher is told; the jobs named in `failing` fail, those in `dying` die."""

    def __init__(self, folder, failing=(), dying=()):
        self.told, self.folder, self.failing, self.dying = [], folder, failing, dying
        self.places, self.jobs = [], []

    def launch(self, job_overrides, initial_job_idx):
        self.places += [job[-1] for job in job_overrides]
        self.jobs += job_overrides
        self.told.append((initial_job_idx, [job[0].split("=")[1] for job in job_overrides]))
        return [self.end(i, order) for i, order in enumerate(self.told[-1][1], initial_job_idx)]

    def end(self, number, order):
        job = self.folder / f"{number}_resnet20_digits_{order}_seed0"
        job.mkdir(parents=True, exist_ok=True)
        (job / "result.json").write_text('{"status": "running"}')
        if order in self.dying:
            raise RuntimeError(f"{order}\ndied")
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
def sweep(hydra, tmp_path, monkeypatch):
    """Sweeps with the given launcher, the six orders unless told otherwise."""
    # Hydra's scan for plugins executes their modules again.
    plugin = Plugins.instance().class_name_to_class["hydra_plugins.pqd_waves.WaveSweeper"]
    monkeypatch.setattr(finish, "_jobs", None)

    def run(launcher, *swept, hydra_overrides=()):
        given = ["experiment=demo", f"hydra.sweep.dir={tmp_path}/sweep", *hydra_overrides]
        sweeper = plugin(max_batch_size=None)
        sweeper.launcher = launcher
        sweeper.config = hydra.compose_config("config", given, RunMode.MULTIRUN)
        sweeper.hydra_context = SimpleNamespace(config_loader=hydra.config_loader)
        return sweeper.sweep([*(swept or ["order=pqd,pdq,qpd,qdp,dpq,dqp"]), "experiment=demo"])

    return run


LAUNCHED = [(0, ["pqd"]), (1, ["pdq", "qpd", "dpq"]), (4, ["qdp", "dqp"])]


def test_the_sweeper_numbers_jobs_across_waves_and_announces_them(sweep, tmp_path):
    launcher = Noting(tmp_path / "sweep")
    assert [len(results) for results in sweep(launcher)] == [1, 3, 2]
    assert launcher.told == LAUNCHED
    assert (tmp_path / "sweep/multirun.yaml").exists()
    names = ["0_{}pqd", "1_{}pdq", "2_{}qpd", "3_{}dpq", "4_{}qdp", "5_{}dqp"]
    expected = [name.format("resnet20_digits_") + "_seed0" for name in names]
    assert finish._jobs == [tmp_path / "sweep" / name for name in expected]
    assert launcher.places == [f"hydra.sweep.subdir='{name}'" for name in expected]


def names(launcher, hydra):
    """What the launched jobs are called, and their folders."""
    jobs = [
        hydra.compose_config("config", [*job, "experiment=demo"], RunMode.MULTIRUN)
        for job in launcher.jobs
    ]
    for cfg in jobs:
        with open_dict(cfg):
            del cfg["hydra"]
    return [run_name(schema.parse(cfg)) for cfg in jobs], [path.name for path in finish._jobs]


def test_names_and_folders_hold_what_is_swept_besides_what_they_always_do(sweep, hydra, tmp_path):
    launcher = Noting(tmp_path / "sweep")
    sweep(launcher, "order=pqd,qpd", "prune.sparsity=0.5", "seed=1,2")
    found, folders = names(launcher, hydra)
    assert sorted(found) == [
        f"resnet20_digits_{order}_s0.5_w7_seed{seed}" for order in ("pqd", "qpd") for seed in (1, 2)
    ]
    assert sorted(name.partition("_")[2] for name in folders) == [
        f"resnet20_digits_{order}_seed{seed}" for order in ("pqd", "qpd") for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("swept", "suffixes"),
    [
        (["prune.lr=0.01,0.1"], ["_prune.lr=0.01", "_prune.lr=0.1"]),
        (["distill=dkd,hinton"], ["_distill=dkd", "_distill=hinton"]),
        (["runtime.threads=[1],[1,2]"], ["_runtime.threads=1", "_runtime.threads=1,2"]),
        (["cache.dir='a/b c',d", "suffix=_x"], ["_x_cache.dir=a-b-c", "_x_cache.dir=d"]),
        (["suffix=_one,_two"], ["_one", "_two"]),
        (
            ["train.momentum=0.1,0.2", "train.momentum=0.3", "++prune.lr=1,2"],
            ["_prune.lr=1", "_prune.lr=2"],
        ),
    ],
)
def test_any_other_override_that_is_swept_is_in_names_and_folders(
    sweep, hydra, tmp_path, swept, suffixes
):
    launcher = Noting(tmp_path / "sweep")
    sweep(launcher, "order=pqd", *swept)
    found, folders = names(launcher, hydra)
    assert sorted(found) == [f"resnet20_digits_pqd_s0.9_w7_seed0{suffix}" for suffix in suffixes]
    assert sorted(name.partition("_")[2] for name in folders) == [
        f"resnet20_digits_pqd_seed0{suffix}" for suffix in suffixes
    ]


def test_a_time_in_a_jobs_folder_stays_what_was_announced(sweep, tmp_path):
    launcher = Noting(tmp_path / "sweep")
    subdir = r"it\'s ${now:%f} ${hydra.job.num}"
    sweep(launcher, "order=pqd,qpd", hydra_overrides=[f"hydra.sweep.subdir='{subdir}'"])
    parsed = OverridesParser.create().parse_overrides(launcher.places)
    assert [tmp_path / "sweep" / o.value() for o in parsed] == finish._jobs
    assert [path.name.partition(" ")[0] for path in finish._jobs] == ["it's"] * 2


def test_a_failure_stops_no_later_wave(sweep, tmp_path):
    launcher = Noting(tmp_path / "sweep", failing=["qpd", "dqp"])
    with pytest.raises(ValueError, match="qpd"):
        sweep(launcher)
    assert launcher.told == LAUNCHED


def test_nor_does_a_job_that_dies(sweep, tmp_path, caplog):
    launcher = Noting(tmp_path / "sweep", dying=["pdq"])
    with pytest.raises(UserError, match="a job died; the same command goes on from where it was"):
        sweep(launcher)
    assert launcher.told == LAUNCHED
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line == "a job died; the others go on. RuntimeError: pdq died"


def test_a_launcher_that_launches_nothing_is_one_line(sweep):
    class Broken:
        def launch(self, *_, **__):
            raise FileNotFoundError("no sbatch\nhere")

    with pytest.raises(UserError, match=r"no job .* in .*/sweep; FileNotFoundError: no sbatch h"):
        sweep(Broken())
    assert finish._jobs == []  # so nothing more is said of them


def test_nothing_is_launched_where_other_results_would_be_lost(sweep, job, tmp_path):
    folder = tmp_path / "sweep/1_resnet20_digits_pdq_seed0"
    folder.mkdir(parents=True)
    there = result.started(job("pdq", "prune.sparsity=0.5"))
    there.status = "completed"
    result.write(folder, there)
    launcher = Noting(tmp_path / "sweep")
    with pytest.raises(UserError, match="1_resnet20_digits_pdq_seed0 holds another configuration"):
        sweep(launcher)
    assert launcher.told == []
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [folder.name]
    assert result.read(folder) == there


def test_a_dry_run_replaces_no_results(sweep, job, tmp_path):
    folder = tmp_path / "sweep/0_resnet20_digits_pqd_seed0"
    folder.mkdir(parents=True)
    there = result.started(job("pqd"))
    there.status = "completed"
    result.write(folder, there)
    launcher = Noting(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"completed.*, which those of a dry run would replace"):
        sweep(launcher, "dry_run=true")
    assert launcher.told == []
    assert result.read(folder) == there


@pytest.mark.parametrize(
    ("swept", "subdir", "line"),
    [
        ("seed=1,2", "${order.name}", "hydra.sweep.subdir names one folder for several jobs"),
        ("prune.sparsity=0.5,1.5", "${hydra.job.num}", "prune.sparsity=1.5 is outside [0, 1)"),
        ("seed=interval(0,3)", "${hydra.job.num}", "seed=interval(0,3) has no end of values; "),
        ("order.name=pqs", "${hydra.job.num}", "order.name=pqs: 's' is no stage; spell it from d"),
    ],
)
def test_mistakes_are_found_before_any_job_starts(sweep, tmp_path, swept, subdir, line):
    launcher = Noting(tmp_path / "sweep")
    with pytest.raises(UserError) as caught:
        sweep(launcher, swept, hydra_overrides=[f"hydra.sweep.subdir='{subdir}'"])
    assert line in str(caught.value)
    assert launcher.told == []
    assert finish._jobs == []


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
