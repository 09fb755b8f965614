"""`pqd rerun`: the same run again, from its result alone, and what is not as it was."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pqd.cli
from configs import config, settings
from pqd import pipeline, result, trainer
from pqd.config import BackboneConfig, CacheConfig, DatasetConfig, RuntimeConfig, TrainConfig
from pqd.result import Result


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def before():
    """The folder of a run."""
    stages = {name: settings(name, epochs=1) for name in ("baseline", "prune")}
    given = config(
        "p",
        dataset=DatasetConfig("digits", "", train_limit=64),
        train=TrainConfig(batch_size=32),
        runtime=RuntimeConfig(threads=[1], min_calls=2, min_seconds=0.0, blocks=2),
        cache=CacheConfig(True, "cache"),
        **stages,
    )
    pipeline.run(given, Path("run"))
    return Path("run")


@pytest.fixture
def rerun(monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["pqd", "rerun", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            pqd.cli.main()
        out, error = capsys.readouterr()
        return caught.value.code, out, error

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def change(folder, **changes):
    result.write(folder, replace(result.read(folder), **changes))


def test_a_run_is_repeated_from_its_result_alone(before, rerun):
    then = result.read(before)
    code, out, _ = rerun(before / "result.json")
    assert code == 0
    assert "differs" not in out
    assert out.splitlines()[-1] == (
        f"accuracy was {then.final.accuracy:.2f} %, now {then.final.accuracy:.2f} %: the same; "
        f"package was {then.final.sizes['package']:,} bytes, now {then.final.sizes['package']:,}"
    )
    (folder,) = Path("outputs/rerun").iterdir()
    now = result.read(folder)
    assert [stage.cached for stage in now.stages] == [False, False]  # the cache has both
    assert [stage.key for stage in now.stages] == [stage.key for stage in then.stages]
    code, _, error = rerun(before)
    assert code == 1
    assert error == (
        f"pqd: {folder} holds a completed run; remove it, or give another with --output\n"
    )


def test_a_teacher_was_a_path(before, rerun):
    found = result.read(before)
    change(before, config=found.config | {"distill": found.config["distill"] | {"teacher": "a"}})
    assert rerun(before, "--compare")[0] == 0


def test_what_is_not_as_it_was_is_said(before, rerun):
    found = result.read(before)
    versions = found.provenance.versions | {"torch": "1.0", "gone": "2"}
    provenance = replace(found.provenance, commit="abc", versions=versions)
    options = {k: v for k, v in found.config["prune"].items() if k != "ramp"}
    final = replace(found.final, dataset="0123456789abcdef")
    change(before, provenance=provenance, final=final, config=found.config | {"prune": options})
    code, out, _ = rerun(before, "--compare", "--set", "seed=5", "cache.dir=elsewhere")
    assert code == 0
    lines = out.splitlines()
    now = found.provenance
    assert lines == [
        f"differs: commit was abc, now {now.commit or 'not recorded'}",
        "differs: gone was 2, now not recorded",
        f"differs: torch was 1.0, now {now.versions['torch']}",
        f"differs: images was 0123456789abcdef, now {found.final.dataset}",
        "differs: seed was 0, now 5",
        "differs: settings that were not recorded have their defaults: prune.ramp",
    ]


def test_another_accuracy_is_said_and_is_code_1(before, rerun):
    found = result.read(before)
    change(before, final=replace(found.final, accuracy=found.final.accuracy - 1))
    code, out, _ = rerun(before, "--output", "again")
    assert code == 1
    assert ": +1.00 points; package" in out


def test_a_kill_is_noted_in_the_result(before, rerun, monkeypatch):
    def kill(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.training, "fit", kill)
    assert rerun(before, "--output", "again")[0] == 130
    now = result.read(Path("again"))
    assert (now.status, now.reason) == ("interrupted", "stopped by SIGTERM")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "there is no result.json in nowhere; give the folder of a run"),
        (["run", "prune.sparsity=0.5"], "prune.sparsity=0.5 would make it another run; give that"),
        (["run", "dataset.rot=x"], "dataset.rot is no setting; did you mean dataset.root?"),
        (["run", "seed"], "'seed': key=value is expected, e.g. dataset.root=/images"),
        (["run", "seed=x"], "pqd: seed=x: Value 'x' of type 'str' could not be converted to Int"),
        (["run", "logger=none"], "logger=none: logger is a group; give its settings, e.g. logger."),
        (["run", "logger.tags=[a"], "logger.tags=[a: while parsing a flow sequence"),
        (["old"], "train.epochs is now <stage>.epochs"),
        (["other"], "result.json: schema is None; this version reads 1 and 2"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, rerun, arguments, line):
    base = config("p", backbone=BackboneConfig("tiny", "tiny"))
    found = result.started(base)
    for name in ("run", "old", "other"):
        (tmp_path / name).mkdir()
    old = found.config | {"train": found.config["train"] | {"epochs": 3}}
    result.write(tmp_path / "old", Result("old", "completed", old))
    (tmp_path / "other/result.json").write_text("{}")
    result.write(tmp_path / "run", replace(found, name="run"))
    code, _, error = rerun(arguments[0], *(["--set", *arguments[1:]] if arguments[1:] else []))
    assert code == 1
    assert line in error
    assert error.startswith("pqd: ")
    assert error.count("\n") == 1
