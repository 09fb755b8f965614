"""The search: what it learns, what stops a trial early, and kills."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

import report_runs
import small_sweeps
from pqd import result
from pqd.errors import UserError
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import StageResult
from pqd.stages import spelled
from pqd.sweep import finish, mistake
from sweepers import dimensions, settings_of, sweeper

pytest.importorskip("optuna")
from pqd.search.stopping import floors
from pqd.search.study import Study

SPACE = (
    "order=pqd,dpq",
    "prune.sparsity=tag(saves,interval(0.3,0.9))",
    "prune.lr=tag(log,interval(0.005,0.5))",
)


def study(folder, *overrides, objectives=("validation_accuracy", "package_bytes"), **options):
    return Study(folder / "journal", dimensions(*(overrides or SPACE)), objectives, **options)


def outcome(order, reached, size=1000):
    """A completed run with these validation accuracies after its stages."""
    stages = [stage.name for stage in spelled(order)]
    run = report_runs.result(order, accuracy=50.0)
    run.stages = [StageResult("baseline", "b", 1.0, validation_accuracy=99.0)]
    for stage, accuracy in zip(stages, reached, strict=True):
        run.stages.append(StageResult(stage, stage, 1.0, validation_accuracy=accuracy))
    run.final.sizes["package"] = size
    return run


class TestStudy:
    def test_a_trial_stops_where_a_harder_one_was_better_and_stayed_so(self, tmp_path):
        found = study(tmp_path)
        (first,) = found.ask(1, 9)
        found.note(0, "hash", "0_x")
        found.tell(0, outcome("pqd", [80, 70, 75]))
        sparsity = first.params["prune.sparsity"]
        easier, harder = ({"prune.sparsity": sparsity + d} for d in (-0.01, 0.01))
        easier, harder = ({**first.params, **given} for given in (easier, harder))
        stages = ["prune", "quantize", "distill"]
        assert floors(found, harder, stages, 1.0) == {}
        # What it was at the end counts, where that is less.
        assert floors(found, easier, stages, 1.0) == {
            "prune": 74.0,
            "quantize": 69.0,
            "distill": 74.0,
        }
        # Only the same stages compare: not those of quantization alone, but those of both.
        assert floors(found, easier, ["quantize", "prune", "distill"], 0.5) == {
            "prune": 69.5,
            "distill": 74.5,
        }

    def test_the_frontier_keeps_to_the_limits(self, tmp_path):
        found = study(tmp_path, limits={"package_bytes": 900, "validation_accuracy": 60})
        points = [(75, 1000), (70, 900), (65, 950), (64, 800), (63, 850), (50, 100)]
        for number, (accuracy, size) in enumerate(points):
            found.ask(1, 9)
            found.note(number, "hash", str(number))
            found.tell(number, outcome("pqd", [80, 80, accuracy], size))
        assert [trial.number for trial in found.frontier] == [1, 3]

    def test_limits_that_are_given_later_hold_for_all_trials(self, tmp_path):
        before = study(tmp_path, limits={"package_bytes": 2000})
        for number, (accuracy, size) in enumerate([(75, 1000), (70, 900)]):
            before.ask(1, 9)
            before.note(number, "hash", str(number))
            before.tell(number, outcome("pqd", [80, 80, accuracy], size))
        for limits, kept in (({}, [0, 1]), ({"package_bytes": 950}, [1])):
            found = study(tmp_path, limits=limits)
            assert [trial.number for trial in found.frontier] == kept

    def test_it_goes_on_where_a_process_was_killed_while_it_wrote(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        study(Path("sweep")).ask(2, 9)
        journal = Path("sweep/journal")
        with journal.open("a") as file:
            file.write('{"op_code":8,"wor')  # a full disk takes a part of a line
        Path("sweep/journal.lock").symlink_to(journal)  # Optuna's, which leads nowhere from there
        found = study(Path("sweep"))
        found.note(1, "hash", "1")
        (_, noted) = study(Path("sweep")).trials
        assert noted.user_attrs["folder"] == "1"

    def test_a_stopped_and_a_dead_trial_are_no_points(self, tmp_path):
        found = study(tmp_path)
        found.ask(2, 9)
        stopped = outcome("pqd", [1, 1, 1])
        stopped.status = "stopped"
        for number, what in enumerate((stopped, None)):
            found.note(number, "hash", str(number))
            found.tell(number, what)
        assert [trial.state.name for trial in found.trials] == ["PRUNED", "FAIL"]
        assert found.complete == found.frontier == []

    def test_it_learns_which_learning_rates_are_good(self, tmp_path):
        found, off = study(tmp_path, objectives=["validation_accuracy"]), []
        while asked := found.ask(4, 40):
            for trial in asked:
                off.append(abs(math.log(trial.params["prune.lr"] / 0.05)))  # 0.05 is best
                found.note(trial.number, "hash", str(trial.number))
                found.tell(trial.number, outcome("pqd", [90, 90, 90 - 10 * off[-1]]))
        assert len(off) == 40
        assert sum(off[20:]) < 0.6 * sum(off[:20])

    def test_another_search_in_the_file_is_refused(self, tmp_path):
        study(tmp_path)
        with pytest.raises(UserError, match=r"another search: objectives was .* choose ano"):
            study(tmp_path, objectives=["validation_accuracy", "latency_ms"])
        line = r"space.prune.lr was tag\(log,interval.*\), now it is interval\(0,2\)"
        with pytest.raises(UserError, match=line):
            study(tmp_path, *SPACE[:2], "prune.lr=interval(0,2)")
        with pytest.raises(UserError, match=r"space.seed was absent, now it is 1,2"):
            study(tmp_path, *SPACE, "seed=1,2")

    @pytest.mark.parametrize("content", ['{"another": "program"}\n', "mine\n and no end"])
    def test_nor_is_any_other_file(self, tmp_path, content):
        (tmp_path / "journal").write_text(content)
        with pytest.raises(UserError, match="journal is not the file of a search"):
            study(tmp_path)
        assert (tmp_path / "journal").read_text() == content

    def test_a_limit_is_on_an_objective(self, tmp_path):
        with pytest.raises(
            UserError, match=r"hydra.sweeper.limits.latency_ms: the objectives are "
        ):
            study(tmp_path, limits={"latency_ms": 1})


class Trained:
    """A launcher that makes up what training would give; killed after `lives` jobs.

    The trials numbered `large` do not fit into memory.
    """

    def __init__(self, hydra, folder, lives=None, large=()):
        self.hydra, self.folder, self.lives, self.jobs = hydra, folder, lives, []
        self.large = large

    def launch(self, job_overrides, initial_job_idx):
        return [self.end(job) for job in job_overrides]

    def end(self, job):
        if self.lives == len(self.jobs):
            raise KeyboardInterrupt
        cfg = self.hydra.compose_config("config", job, RunMode.RUN)
        subdir = cfg.hydra.sweep.subdir
        settings = settings_of(cfg)
        sparsity, lr = settings.prune.sparsity, settings.prune.lr
        accuracy = round(90 - 20 * sparsity**4 - 40 * abs(lr - 0.05), 3)
        made = outcome(settings.order.name, [accuracy] * 3, round(1000 * (1 - sparsity)))
        found = result.started(settings)
        if int(Path(subdir).name.partition("_")[0]) in self.large:
            result.write(self.folder / subdir, replace(found, status="failed"))
            return JobReturn(status=JobStatus.FAILED, _return_value=MemoryError("too large"))
        found.status, found.stages, found.final = "completed", made.stages, made.final
        stage = found.order[0]
        if accuracy < settings.stop_below.get(stage, 0):
            found.status, found.final = "stopped", None
            found.stages = [s for s in found.stages if s.stage in ("baseline", stage)]
        self.jobs.append(found.name)
        result.write(self.folder / subdir, found)
        return JobReturn(status=JobStatus.COMPLETED)


@pytest.fixture
def search(hydra, monkeypatch):
    """Searches in a folder with some of the sweeper's options, killed after `lives` jobs."""
    monkeypatch.setattr(finish, "_jobs", None)

    def run(folder, *arguments, lives=None, large=(), **options):
        given = [f"hydra.sweep.dir={folder}", "hydra/sweeper=search"]
        options = {"n_trials": 9, "batch": 2, "storage": f"{folder}/study.journal"} | options
        launcher = Trained(hydra, folder, lives, large)
        made = sweeper(hydra, "pqd_search.SearchSweeper", launcher, *given, **options)
        objectives = "objectives=[validation_accuracy,package_bytes]"
        try:
            made.sweep([objectives, *(arguments or SPACE), "experiment=demo", "logger=none"])
        finally:
            launcher.folders = finish._jobs
        return launcher

    return run


def test_a_search_that_is_killed_again_and_again_ends_as_if_it_had_not_been(search, tmp_path):
    whole = search(tmp_path / "whole", margin=1.0)
    assert len(whole.jobs) == len(whole.folders) == 9
    jobs = []
    for lives in itertools.cycle([0, 1, 2, 3]):
        try:
            launcher = search(tmp_path / "pieces", margin=1.0, lives=lives)
        except KeyboardInterrupt:
            continue
        jobs += launcher.jobs
        break
    folders = [[path.name for path in done.folders] for done in (whole, launcher)]
    assert folders[0] == folders[1]
    found = [small_sweeps.figures(tmp_path / name) for name in ("whole", "pieces")]
    assert found[0] == found[1]
    statuses = [record["status"] for record in found[0].values()]
    assert set(statuses) == {"completed", "stopped"}
    again = search(tmp_path / "whole", margin=1.0)
    assert again.jobs == []
    assert again.folders == whole.folders
    more = search(tmp_path / "whole", margin=1.0, n_trials=11)
    assert len(more.jobs) == 2


@pytest.mark.parametrize(("batch", "starts"), [(2, 1), (1, 2)])
def test_a_search_gets_past_a_trial_that_raises(search, tmp_path, batch, starts):
    for _ in range(starts):  # of a whole batch that failed, what is wrong may be something else
        with pytest.raises(MemoryError, match="too large"):
            search(tmp_path, batch=batch, large=[2], n_trials=5)
    search(tmp_path, batch=batch, large=[2], n_trials=5)
    statuses = [record["status"] for record in small_sweeps.figures(tmp_path).values()]
    assert sorted(statuses) == ["completed"] * 4 + ["failed"]


def test_all_its_trials_share_one_frontier_of_the_report(search, tmp_path):
    search(tmp_path)
    report = view(load([tmp_path]))
    (found,) = report.searches
    assert len(found.frontiers[0].points) == 10  # and the dense network
    assert len(found.trials) == 9
    assert not report.cases


@pytest.mark.parametrize(
    ("arguments", "options", "line"),
    [
        (["seed=1"], {}, "a search has nothing to choose from"),
        ([*SPACE, "dry_run=true"], {}, "a search learns nothing from dry_run=true"),
        ([*SPACE, "objectives=[]"], {}, "objectives=[] is empty; give some of validation_accuracy"),
        (
            [*SPACE, "objectives=[latency_ms]", "runtime.threads=[]"],
            {},
            "runtime.threads=[] is empty; objectives=latency_ms goes by its first entry",
        ),
        (SPACE, {"n_trials": 0}, "hydra.sweeper.n_trials=0 is too small; at least 1 is accepted"),
        (SPACE, {"n_trials": 2.5}, "Value '2.5' of type 'float' could not be converted to Integer"),
        (
            SPACE,
            {"batch": None},
            "Incompatible value 'None' for field of type 'int' (hydra.sweeper",
        ),
        (SPACE, {"seed": -1}, "hydra.sweeper.seed=-1 is outside [0, 2147483648]"),
        (SPACE, {"margin": "x"}, "Value 'x' of type 'str' could not be converted to Float (hydra."),
        (SPACE, {"limits": 5}, "Cannot assign int to Dict[str, float] (hydra.sweeper.limits)"),
        (SPACE, {"params": 5}, "hydra.sweeper.params=5: settings and what to sweep them over are "),
        (SPACE, {"trials": 5}, "Key 'trials' not in 'SearchSettings' (hydra.sweeper.trials)"),
        (SPACE, {"limits": {"speed": 1}}, "limits.speed: the objectives are "),
        ([*SPACE, "prune.ramp=2"], {}, "prune.ramp=2.0 is outside [0, 1]"),
    ],
)
def test_mistakes_are_found_before_any_trial_starts(search, tmp_path, arguments, options, line):
    with pytest.raises((UserError, OmegaConfBaseException)) as caught:
        search(tmp_path, *arguments, **options)
    assert line in mistake(caught.value)
    assert not list(tmp_path.glob("*/result.json"))


def test_other_settings_are_another_search(search, tmp_path):
    search(tmp_path, n_trials=2)
    with pytest.raises(UserError, match="is of a search with other settings; choose another hydra"):
        search(tmp_path, *SPACE, "prune.epochs=7")
    assert len(search(tmp_path, *SPACE, "logger.mode=offline", n_trials=4).jobs) == 2


def test_limits_are_given_as_any_setting(hydra):
    given = ["hydra/sweeper=search", "hydra.sweeper.limits={package_bytes: 900}"]
    loader = hydra.config_loader
    found = loader.load_configuration("config", overrides=given, run_mode=RunMode.MULTIRUN)
    assert found.hydra.sweeper.limits == {"package_bytes": 900}
