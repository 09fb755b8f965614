"""train.py's command line: places that cannot be written, odd flags, and what is left behind."""

import errno
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

import pqd.sweep.launch  # noqa: F401
from pqd import files, result
from pqd.errors import UserError
from pqd.sweep import finish

launch = sys.modules["pqd.sweep.launch"]  # the module; the package has the function
ROOT = Path(__file__).parents[1]
TINY = (
    "experiment=demo",
    "logger=none",
    "budget=0.01",
    "dataset.train_limit=64",
    "runtime.threads=[1]",
    "runtime.min_calls=2",
    "runtime.min_seconds=0",
    "runtime.blocks=2",
)


@pytest.fixture
def train(monkeypatch, capsys, tmp_path):
    """Runs train.py in this process; returns the exit code and what it printed as errors."""
    handlers, level = logging.root.handlers[:], logging.root.level
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(launch, "_job_failed", False)
    for name in ("_place", "_folder", "_jobs"):
        monkeypatch.setattr(finish, name, None)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, flags=()):
        settings = [*TINY, "cache.dir=cache", *arguments]  # the last of a key counts
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *settings])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return caught.value.code, capsys.readouterr().err

    yield run
    logging.root.handlers[:], logging.root.level = handlers, level


NAME = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["hydra.run.dir=/proc/x/y"], "/proc/x: No such file or directory"),
        (["hydra.run.dir={file}"], "{file}: File exists"),
        (["hydra.run.dir={file}/run"], "{file}/run: Not a directory"),
        ([f"hydra.run.dir={NAME}"], f"{NAME[:70]}...{NAME[:70]}: File name too long"),
        (["-m", "hydra.sweep.dir=/proc/x"], "the sweep cannot write to /proc/x: No such file "),
        (["-m", "hydra.sweep.dir={file}"], "/result.json: Not a directory"),
        (["-m", "hydra.sweep.dir=s", f"hydra.sweep.subdir={NAME}"], ": File name too long"),
        (["hydra.run.dir=run", "cache.dir={file}"], "cache.dir={file} cannot be made: File exists"),
        (["-m", "--cfg=job"], "Only one of --run, --multirun, --cfg, --info and --shell_compl"),
        (["--experimental-rerun=none.pickle"], "; `pqd rerun FOLDER` repeats a run"),
        (["--exp", "none.pickle"], "--experimental-rerun reads a pickle, which can run any code"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna is unknown; choose from: basic, search, "),
        (["hydra.run.dri=x"], "Could not override 'hydra.run.dri'. Key 'dri' not in 'RunDir'"),
        (["--config-dir={folder}", "+own=bad"], "ParserError: while parsing a flow sequence"),
    ],
)
def test_a_mistake_is_one_line(train, tmp_path, arguments, line):
    (tmp_path / "file").write_text("")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/bad.yaml").write_text("a: [b\n")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    given = [argument.format(**places) for argument in arguments]
    flags = [argument for argument in given if argument.startswith("-")]
    code, error = train(*given[len(flags) :], flags=flags)
    assert code == 1
    assert error.startswith("pqd: ")
    assert line.format(**places) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "null", '{"name": "another program"}', "{"])
def test_another_programs_result_is_not_replaced(train, tmp_path, content):
    place = tmp_path / "run/0_resnet20_digits_pqd_seed0/result.json"
    place.parent.mkdir(parents=True)
    place.write_text(content)
    for flags, where in ((), f"run.dir={place.parent}"), (["-m"], f"sweep.dir={tmp_path}/run"):
        code, error = train(f"hydra.{where}", flags=flags)
        assert code == 1
        assert f"pqd: {place} is not a result of pqd and would be replaced; choose an" in error
        assert error.count("\n") == 1
        assert place.read_text() == content


@pytest.mark.parametrize("refused", ["seed=1", "prune.sparsity=1.5", "dry_run=true"])
def test_a_refused_command_leaves_the_run_that_is_under_way_as_it_is(train, tmp_path, refused):
    result.write(tmp_path, result.Result("other", "running", {}, config_hash="of another one"))
    before = (tmp_path / "result.json").read_bytes()
    code, error = train(f"hydra.run.dir={tmp_path}", refused)
    assert (code, error.count("\n")) == (1, 1)
    assert (tmp_path / "result.json").read_bytes() == before


class TestFailure:
    """What a run that fails leaves behind."""

    @pytest.fixture(autouse=True)
    def _full(self, monkeypatch):
        """The disk is full when the first checkpoint is written."""
        from pqd import checkpoints

        def full(path, *_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(checkpoints, "save", full)

    def test_it_is_on_record_and_in_the_exit_code(self, train, tmp_path):
        code, error = train("hydra.run.dir=run")
        assert code == 1
        assert error.endswith(".checkpoint: No space left on device\n")
        assert result.read(tmp_path / "run").status == "failed"

    def test_where_nothing_can_be_written_the_status_is_replaced_in_place(
        self, train, tmp_path, monkeypatch
    ):
        write, written = files.write_json, []

        def only_once(path, content):
            written.append(path)
            if path.name == "result.json" and written.count(path) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write(path, content)

        monkeypatch.setattr(files, "write_json", only_once)
        code, error = train("hydra.run.dir=run")
        assert code == 1
        assert error == f"pqd: {tmp_path}/run/result.json: No space left on device\n"
        assert result.read(tmp_path / "run").status == "failed"

    def test_a_sweep_says_that_nothing_completed(self, train, tmp_path):
        code, error = train("order=pqd,qpd", "hydra.sweep.dir=s", flags=["-m"])
        assert code == 1
        assert len([line for line in error.splitlines() if " failed: " in line]) == 2
        assert [result.read(path).status for path in sorted((tmp_path / "s").glob("*_*"))] == [
            "failed",
            "failed",
        ]
        assert "complete:" not in error


def test_a_file_without_space_is_named(tmp_path):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space") as caught, files.replacing(tmp_path / "x"):
        full(None)
    assert caught.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failing", "objectives", "returned"),
    [
        (False, None, 97.5),
        (False, "[latency_ms,validation_accuracy]", [2.0, 97.5]),
        (False, "[package_bytes]", None),  # not measured
        (True, None, None),
    ],
)
def test_what_sweepers_that_optimize_get(tmp_path, monkeypatch, failing, objectives, returned):
    """Figures that were not measured on the test split, which is 98.5 % here."""

    def run(settings, folder):
        if failing:
            raise UserError("the images are gone")
        latency = [result.Latency("onnxruntime", "int8", 1, 1, 2.0)]
        final = result.Final(dense_accuracy=99.0, accuracy=98.5, sparsity=0.0, latency=latency)
        stages = [result.StageResult("baseline", "key", 1.0, validation_accuracy=97.5)]
        return result.Result("a run", "completed", {}, stages=stages, final=final)

    places = SimpleNamespace(cwd=str(tmp_path), output_dir=str(tmp_path))
    fake = SimpleNamespace(mode=RunMode.RUN, runtime=places)
    monkeypatch.setattr(HydraConfig, "get", lambda: fake)
    monkeypatch.setattr("pqd.pipeline.run", run)
    monkeypatch.setattr(launch, "_job_failed", False)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.chdir(ROOT)
    main = runpy.run_path(str(ROOT / "train.py"), run_name="train")["main"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [*TINY, *([f"objectives={objectives}"] if objectives else [])])
    assert main(cfg) == returned
    assert launch._job_failed == failing


@pytest.mark.slow
def test_one_sweep_in_a_folder_of_its_own_with_an_ascii_terminal(tmp_path):
    """Jobs that change their folder share one cache; the end of the sweep can be printed."""
    arguments = ["-m", *TINY, "order=pqd,partial/pq", "hydra.job.chdir=true"]
    places = ["hydra.sweep.dir=sweep", "cache.dir=cache"]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments, *places],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "launching job 1 of 2" in done.stdout
    assert "launching job 2 of 2" in done.stdout
    assert "Launching" not in done.stdout
    assert f"2 of 2 runs completed; folder: {tmp_path}/sweep" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "sweep"}
    assert (tmp_path / "sweep/report.html").exists()
    first, second = sorted((tmp_path / "sweep").glob("*_seed0"))
    found = json.loads((second / "result.json").read_text())
    cached = {stage["stage"]: stage["cached"] for stage in found["stages"]}
    assert cached["baseline"]
    log = (first / "train.log").read_text()
    assert "baseline  epoch 1/1  loss " in log
    assert "model.onnx: " in log
