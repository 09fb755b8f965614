"""The sweeper of waves: what it launches, announces and refuses, and how jobs are named."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode

from pqd import result
from pqd.cache import Cache
from pqd.errors import UserError
from pqd.identity import run_name, wanted
from pqd.sweep import finish
from sweepers import demo, settings_of, sweeper


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
    monkeypatch.setattr(finish, "_jobs", None)

    def run(launcher, *swept, hydra_overrides=()):
        given = [f"hydra.sweep.dir={tmp_path}/sweep", *hydra_overrides]
        made = sweeper(hydra, "pqd_waves.WaveSweeper", launcher, *given, max_batch_size=None)
        return made.sweep([*(swept or ["order=pqd,pdq,qpd,qdp,dpq,dqp"]), "experiment=demo"])

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


def test_jobs_keep_their_numbers_and_start_at_once_where_all_is_in_the_cache(sweep, tmp_path):
    cache, orders = tmp_path / "cache", ["pqd", "pdq", "qpd", "qdp", "dpq", "dqp"]
    for number, name in enumerate({n for o in orders for n in wanted(demo(o)).values()}):
        Cache(cache).get(str(number), "", lambda folder: None, name)
    launcher = Noting(tmp_path / "sweep")
    sweep(launcher, f"order={','.join(orders)}", f"cache.dir={cache}")
    assert launcher.told == [(0, orders)]
    assert [place.partition("'")[2][0] for place in launcher.places] == list("012435")


def names(launcher, hydra):
    """What the launched jobs are called, and their folders."""
    jobs = [
        hydra.compose_config("config", [*job, "experiment=demo"], RunMode.MULTIRUN)
        for job in launcher.jobs
    ]
    return [run_name(settings_of(job)) for job in jobs], [path.name for path in finish._jobs]


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


def test_nothing_is_launched_where_other_results_would_be_lost(sweep, tmp_path):
    folder = tmp_path / "sweep/1_resnet20_digits_pdq_seed0"
    folder.mkdir(parents=True)
    there = result.started(demo("pdq", "prune.sparsity=0.5"))
    there.status = "completed"
    result.write(folder, there)
    launcher = Noting(tmp_path / "sweep")
    with pytest.raises(UserError, match="1_resnet20_digits_pdq_seed0 holds another configuration"):
        sweep(launcher)
    assert launcher.told == []
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [folder.name]
    assert result.read(folder) == there


def test_a_dry_run_replaces_no_results(sweep, tmp_path):
    folder = tmp_path / "sweep/0_resnet20_digits_pqd_seed0"
    folder.mkdir(parents=True)
    there = result.started(demo("pqd"))
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
