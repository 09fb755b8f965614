"""The end of a sweep: which jobs count, who is named, and what must not fail it."""

import logging
import os
import time
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from configs import config
from pqd import report, result, tables
from pqd.sweep import finish as end_of_sweep
from pqd.sweep import job as around_job


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(end_of_sweep, "_report_seconds", 0.0)
    monkeypatch.setattr(report, "build", lambda folders, output, figures: None)
    monkeypatch.setattr(end_of_sweep, "_summarize", lambda completed, folder: "the verdict")


@pytest.fixture
def job(tmp_path):
    """Makes a job's folder, with a result of a status if one is given."""
    number = iter(range(100))

    def make(status=None, reason=None):
        folder = tmp_path / f"{next(number)}_job"
        folder.mkdir()
        if status:
            found = result.started(config())
            found.status, found.reason = status, reason
            result.write(folder, found)
        return folder

    return make


def test_failed_jobs_are_named_by_their_folders(job, tmp_path, capsys):
    jobs = [job("completed"), job("failed", "disk full"), job("running"), job(), job("interrupted")]
    path = jobs[4] / "result.json"
    path.write_text("{")
    assert not end_of_sweep.end(tmp_path, jobs)
    out, error = capsys.readouterr()
    assert error.splitlines() == [
        "pqd: 1_job failed: disk full",
        "pqd: 2_job died: killed from outside, out of memory, or its node was lost",
        f"pqd: the result cannot be read: {path}: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)",
        "pqd: without a result, 2 of 5 jobs: 3_job, 4_job",
    ]
    assert out.splitlines()[-3:] == [
        f"report: {tmp_path}/report.html",
        "the verdict",
        f"1 of 5 runs completed; folder: {tmp_path}",
    ]


def test_the_end_says_how_to_upload_the_runs_of_jobs_that_were_offline(job, tmp_path, capsys):
    folder = job("completed")
    (folder / "wandb/offline-run-1").mkdir(parents=True)
    assert end_of_sweep.end(tmp_path, [folder])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"W&B: jobs were offline; upload with: wandb sync {tmp_path}/*/wandb/offline-run-*",
        f"1 of 1 runs completed; folder: {tmp_path}",
    ]


def test_a_job_that_stopped_as_its_settings_say_did_not_fail(job, tmp_path, capsys):
    assert end_of_sweep.end(tmp_path, [job("completed"), job("stopped", "stop_below.prune=80")])
    out, error = capsys.readouterr()
    assert error == ""
    line = f"1 of 2 runs completed, 1 stopped early; folder: {tmp_path}"
    assert out.splitlines()[-1] == line


def test_after_ctrl_c_a_job_may_still_be_running(job, tmp_path, capsys):
    assert not end_of_sweep.end(tmp_path, [job("running")], interrupted=True)
    assert capsys.readouterr().err == "pqd: 0_job running\n"


def test_jobs_of_an_earlier_sweep_do_not_count(job, tmp_path, capsys):
    earlier, own = job("failed", "old"), job("completed")
    assert end_of_sweep.end(tmp_path, [own])
    assert capsys.readouterr().err == ""
    assert not end_of_sweep.end(tmp_path, None)  # where nobody says which are this sweep's
    assert capsys.readouterr().err == f"pqd: {earlier.name} failed: old\n"


def test_no_job_is_an_error(tmp_path, capsys):
    assert not end_of_sweep.end(tmp_path, None)
    assert capsys.readouterr().err == f"pqd: no job was launched in {tmp_path}\n"


@pytest.mark.parametrize(
    ("module", "trouble", "what"),
    [
        (report, "build", "the sweep's report"),
        (end_of_sweep, "_summarize", "the sweep's summary"),
        (tables, "comparison_table", "the table"),
    ],
)
def test_what_a_sweep_shows_at_its_end_does_not_fail_it(
    job, tmp_path, monkeypatch, caplog, module, trouble, what
):
    def fail(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(module, trouble, fail)
    with caplog.at_level(logging.DEBUG):
        assert end_of_sweep.end(tmp_path, [job("completed")])
    warning, trace = (r for r in caplog.records if r.name == end_of_sweep.__name__)
    assert warning.getMessage() == f"{what} failed; no result is affected: KeyError: 'x'"
    assert (trace.levelname, trace.exc_info[0]) == ("DEBUG", KeyError)


class TestAfterJob:
    @pytest.fixture
    def finish_job(self, tmp_path, monkeypatch):
        built = []
        places = {"cwd": str(tmp_path), "output_dir": str(tmp_path / "job")}
        fake = SimpleNamespace(
            mode=RunMode.MULTIRUN,
            sweep=SimpleNamespace(dir=str(tmp_path)),
            runtime=SimpleNamespace(**places),
        )
        monkeypatch.setattr(HydraConfig, "get", lambda: fake)
        monkeypatch.chdir(tmp_path)

        def build(folders, output, figures):
            built.append(figures)

        monkeypatch.setattr(report, "build", build)

        def finish(since=None, took=0.0):
            """Ends a job `since` seconds after a report that took `took` seconds; was one made?"""
            if since is not None:
                page = tmp_path / "report.html"
                page.touch()
                os.utime(page, (time.time() - since,) * 2)
            monkeypatch.setattr(end_of_sweep, "_report_seconds", took)
            built.clear()
            with around_job(None):
                pass
            return built

        return finish

    def test_reports_take_a_tenth_of_the_time(self, finish_job):
        assert finish_job() == [False]  # the first one; without the figures, which take long
        assert finish_job(since=100, took=20) == []
        assert finish_job(since=100, took=5) == [False]

    def test_an_error_does_not_fail_the_job(self, finish_job, monkeypatch, caplog):
        monkeypatch.setattr(end_of_sweep, "report_meanwhile", lambda sweep: 1 / 0)
        assert finish_job() == []
        (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert line.startswith("the sweep's report failed; no result is affected: ZeroDivision")
