"""The end of a sweep: which jobs count, who is named, and what must not fail it."""

import json
import logging
import os
import time
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from pqd.record import new_record

from pqd import progress, report, sweep
from pqd.config import Config, LoggerConfig


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(sweep, "_report_seconds", 0.0)
    monkeypatch.setattr(report, "build", lambda folders, output, figures: None)
    monkeypatch.setattr(sweep, "_summarize", lambda completed, folder: "the verdict")


@pytest.fixture
def job(tmp_path):
    """Makes a job's folder, with a result of a status if one is given."""
    number = iter(range(100))

    def make(status=None, reason=None):
        config = Config(logger=LoggerConfig("none"))
        config.order.name, config.order.stages = "none", []
        config.backbone.name = config.dataset.name = "x"
        folder = tmp_path / f"{next(number)}_job"
        folder.mkdir()
        if status:
            record = new_record(config) | {"status": status, "reason": reason}
            (folder / "result.json").write_text(json.dumps(record))
        return folder

    return make


def test_failed_jobs_are_named_by_their_folders(job, tmp_path, capsys):
    jobs = [job("completed"), job("failed", "disk full"), job("running"), job(), job("interrupted")]
    (jobs[4] / "result.json").write_text("{")
    assert not sweep._finish(tmp_path, jobs)
    out, error = capsys.readouterr()
    assert error.splitlines() == [
        "pqd: 1_job failed: disk full",
        "pqd: 2_job died: killed from outside, out of memory, or its node was lost",
        "pqd: without a result, 2 of 5 jobs: 3_job, 4_job",
    ]
    assert out.splitlines()[-2:] == [
        "the verdict",
        f"1 of 5 runs completed; folder: {tmp_path}",
    ]


def test_after_ctrl_c_a_job_may_still_be_running(job, tmp_path, capsys):
    assert not sweep._finish(tmp_path, [job("running")], interrupted=True)
    assert capsys.readouterr().err == "pqd: 0_job running\n"


def test_jobs_of_an_earlier_sweep_do_not_count(job, tmp_path, capsys):
    earlier, own = job("failed", "old"), job("completed")
    assert sweep._finish(tmp_path, [own])
    assert capsys.readouterr().err == ""
    assert not sweep._finish(tmp_path, None)  # where nobody says which are this sweep's
    assert capsys.readouterr().err == f"pqd: {earlier.name} failed: old\n"


def test_no_job_is_an_error(tmp_path, capsys):
    assert not sweep._finish(tmp_path, None)
    assert capsys.readouterr().err == f"pqd: no job was launched in {tmp_path}\n"


@pytest.mark.parametrize(
    ("module", "trouble", "what"),
    [
        (report, "build", "the sweep's report"),
        (sweep, "_summarize", "the sweep's summary"),
        (progress, "comparison_table", "the table"),
    ],
)
def test_what_a_sweep_shows_at_its_end_does_not_fail_it(
    job, tmp_path, monkeypatch, caplog, module, trouble, what
):
    def fail(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(module, trouble, fail)
    with caplog.at_level(logging.DEBUG):
        assert sweep._finish(tmp_path, [job("completed")])
    warning, trace = caplog.records
    assert warning.getMessage() == f"{what} failed, the results are complete: KeyError: 'x'"
    assert (trace.levelname, trace.exc_info[0]) == ("DEBUG", KeyError)


class TestAfterJob:
    @pytest.fixture
    def finish_job(self, tmp_path, monkeypatch):
        built = []
        fake = SimpleNamespace(mode=RunMode.MULTIRUN, sweep=SimpleNamespace(dir=str(tmp_path)))
        monkeypatch.setattr(sweep.HydraConfig, "get", lambda: fake)

        def build(folders, output, figures):
            built.append(figures)

        monkeypatch.setattr(report, "build", build)

        def finish(since=None, took=0.0):
            """Ends a job `since` seconds after a report that took `took` seconds; was one made?"""
            if since is not None:
                page = tmp_path / "report.html"
                page.touch()
                os.utime(page, (time.time() - since,) * 2)
            monkeypatch.setattr(sweep, "_report_seconds", took)
            built.clear()
            with sweep.job(None):
                pass
            return built

        return finish

    def test_reports_take_a_tenth_of_the_time(self, finish_job):
        assert finish_job() == [False]  # the first one; without the figures, which take long
        assert finish_job(since=100, took=20) == []
        assert finish_job(since=100, took=5) == [False]

    def test_an_error_does_not_fail_the_job(self, finish_job, monkeypatch, caplog):
        monkeypatch.setattr(sweep, "_after_job", lambda: 1 / 0)
        assert finish_job() == []
        (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert line.startswith("the sweep's report failed, the results are complete: ZeroDivision")
