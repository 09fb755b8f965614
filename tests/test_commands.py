"""The public commands, in processes of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import report_runs
from pqd.package import pack
from pqd.sweep import mistake
from tiny_onnx import int8_network

ROOT = Path(__file__).parents[1]
PQD = [sys.executable, "-c", "from pqd.cli import main; main()"]
TINY = [
    "experiment=demo",
    "logger=none",
    "dataset.train_limit=64",
    "baseline.epochs=1",
    "prune.epochs=1",
    "quantize.epochs=1",
    "distill.epochs=1",
    "train.device=cpu",
    "quantize.calibration_batches=1",
    "runtime.threads=[1]",
    "runtime.min_calls=2",
    "runtime.min_seconds=0",
    "runtime.blocks=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


def command(folder, *arguments):
    """The training command, writing below `folder`."""
    places = [f"cache.dir={folder}/cache", f"hydra.run.dir={folder}/run"]
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    return [sys.executable, "train.py", *flags, *TINY, *places, *overrides]


def call(line, environment=None, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **options
    )


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


@pytest.mark.slow
class TestTrain:
    @pytest.fixture(scope="class")
    def done(self, folder):
        return call(command(folder, "order=pqd"))

    def test_a_run_ends_with_its_artifact(self, folder, done):
        assert done.returncode == 0, done.stderr
        (record,) = results(folder / "run")
        assert record["status"] == "completed"
        assert [s["stage"] for s in record["stages"]] == [
            "baseline",
            "prune",
            "quantize",
            "distill",
        ]
        assert all((folder / "run" / name).exists() for name in ("model.onnx", "model.pqd"))
        assert "epoch 1/1" in done.stdout  # plain lines where there is no terminal
        assert "on the test split" in done.stdout

    def test_its_model_packs_and_unpacks_and_predicts(self, folder, done):
        model = folder / "run/model.onnx"
        assert call([*PQD, "pack", model, folder / "m.pqd"]).returncode == 0
        assert (folder / "m.pqd").read_bytes() == (folder / "run/model.pqd").read_bytes()
        assert call([*PQD, "unpack", folder / "m.pqd", folder / "m.onnx"]).returncode == 0
        assert (folder / "m.onnx").read_bytes() == model.read_bytes()
        Image.new("L", (12, 9), 200).save(folder / "gray.png")
        outputs = {
            call([*PQD, "predict", m, folder / "gray.png"]).stdout
            for m in (model, folder / "m.pqd")
        }
        (line,) = outputs
        assert line.startswith(f"{folder}/gray.png: ")

    def test_a_sweep_reuses_its_stages_and_survives_a_failing_job(self, folder, done):
        sweep = folder / "sweep"
        again = call(
            command(folder, "-m", "order=pqd,partial/none", "distill.teacher=null,/none",
                    f"hydra.sweep.dir={sweep}")
        )  # fmt: skip
        assert again.returncode == 1
        assert "Traceback" not in again.stderr
        found = results(sweep)
        assert [r["status"] for r in found] == ["completed", "failed", "completed", "completed"]
        assert [s["cached"] for s in found[0]["stages"]] == [True] * 4
        assert found[1]["config"]["distill"]["teacher"] == "/none"
        assert "3 of 4 runs completed" in again.stdout
        name = "1_resnet20_digits_pqd_seed0_distill.teacher=none"
        assert f"pqd: {name} failed: distill.teacher=/none cannot be read: No such" in again.stderr
        assert (sweep / "report.html").exists()

    def test_the_cache_is_listed_and_pruned(self, folder, done):
        listed = call([*PQD, "cache", "ls", "--dir", folder / "cache"])
        assert "resnet20_digits_pqd_s0.9_w7_seed0 distill" in listed.stdout
        kept = call([*PQD, "cache", "prune", "--dir", folder / "cache", "--days", "1"])
        assert kept.stdout.startswith("0 entries")
        (damaged, *_) = [path for path in (folder / "cache").iterdir() if path.is_dir()]
        (damaged / "manifest.json").unlink()
        listed = call([*PQD, "cache", "ls", "--dir", folder / "cache"]).stdout.splitlines()
        assert [line.split()[-1] for line in listed if damaged.name in line] == ["damaged"]
        pruned = call([*PQD, "cache", "prune", "--dir", folder / "cache", "--days", "0"])
        assert pruned.stdout.splitlines()[:-1] == listed[:-1]
        assert not [path for path in (folder / "cache").iterdir() if path.suffix != ".lock"]

    def test_other_settings_do_not_replace_the_results(self, folder, done):
        before = (folder / "run/result.json").read_bytes()
        other = call(command(folder, "order=pqd", "prune.sparsity=0.5"))
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        assert other.stderr.startswith(f"pqd: {folder}/run holds another configuration's results")
        assert (folder / "run/result.json").read_bytes() == before


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["order=pdp"], "pqd: order=pdp is unknown (did you mean qpd?); choose from: "),
            (["-m", "order=glob(typo*)"], "pqd: order=glob(typo*) is unknown; choose from: "),
            (
                ["-m", "hydra.sweeper.params={oder: 'glob(*)'}"],
                "(did you mean order?); choose from",
            ),
            (["prune.sparsity=1.5"], "pqd: prune.sparsity=1.5 is outside [0, 1)"),
            (["prune.epoch=1"], "pqd: prune.epoch is no setting; did you mean prune.epochs?"),
        ],
    )
    def test_one_line_and_exit_code(self, folder, arguments, line):
        done = call(command(folder, *arguments))
        assert done.returncode == 1
        assert line in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1

    def test_a_folder_that_cannot_be_written(self, folder):
        (folder / "file").write_text("")
        done = call([*command(folder, "order=pqd"), f"hydra.run.dir={folder}/file/run"])
        assert done.returncode == 1
        assert done.stderr.strip() == f"pqd: {folder}/file/run: Not a directory"

    def test_a_full_disk_is_one_line_and_a_bug_is_not(self):
        error = OSError(28, "No space left on device", "/data/cache/x")
        assert mistake(error) == "/data/cache/x: No space left on device"
        assert mistake(KeyError("x")) is None
        assert mistake(OSError(5, "Input/output error")) is None

    def test_unknown_files(self, folder):
        done = call([*PQD, "unpack", folder / "none.pqd", folder / "x.onnx"])
        assert done.returncode == 1
        assert "none.pqd" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def small_files():
    """Every write fails, as on a full disk; what the system says is `File too large`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


class TestFilesFromElsewhere:
    """One line and exit code 1 for what others wrote and what the system refuses."""

    @pytest.fixture
    def model(self, tmp_path):
        return int8_network(tmp_path / "model.onnx")

    def refused(self, *arguments, **options):
        done = call([*PQD, *arguments], **options)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line

    def test_pack_and_unpack_keep_their_input(self, tmp_path, model):
        content = model.read_bytes()
        (tmp_path / "link.pqd").symlink_to(model)
        for other in (model, tmp_path / "link.pqd"):
            assert self.refused("pack", model, other) == (
                f"pqd: {other} would be overwritten by what is made of it; give another file"
            )
        assert model.read_bytes() == content
        assert self.refused("unpack", model, model).startswith(f"pqd: {model} would be overwr")

    def test_places_that_cannot_be_written(self, tmp_path, model):
        package = tmp_path / "m.pqd"
        pack(model, package)
        assert self.refused("unpack", package, tmp_path / "none/m.onnx") == (
            f"pqd: cannot write {tmp_path}/none/m.onnx: No such file or directory"
        )
        assert self.refused("pack", model, tmp_path) == (
            f"pqd: cannot write {tmp_path}: Is a directory"
        )
        full = {"preexec_fn": small_files}
        assert self.refused("unpack", package, tmp_path / "m.onnx", **full) == (
            f"pqd: cannot write {tmp_path}/m.onnx: File too large"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pqd", "model.onnx"]

    def test_a_report_that_cannot_be_written(self, tmp_path):
        run = report_runs.write(tmp_path / "runs", report_runs.result())
        (tmp_path / "file").touch()
        line = self.refused("report", tmp_path / "runs", "--output", tmp_path / "file")
        assert line == f"pqd: cannot write {tmp_path}/file: File exists"
        assert run.exists()

    @pytest.mark.parametrize("days", ["nan", "inf", "1e+12", "-1"])
    def test_days_that_are_none(self, tmp_path, days):
        line = self.refused("cache", "prune", "--dir", tmp_path, f"--days={days}")
        assert line == f"pqd: --days={days} is outside [0, 36500]"

    def test_a_folder_is_no_model(self, tmp_path, model):
        assert self.refused("predict", tmp_path, tmp_path / "a.png") == (
            f"pqd: cannot read {tmp_path}: Is a directory"
        )

    def test_one_bad_image_among_good_ones(self, tmp_path, model):
        good, bad = tmp_path / "good.png", tmp_path / "bad.png"
        Image.new("L", (4, 4), 250).save(good)
        bad.write_bytes(good.read_bytes()[:40])
        done = call([*PQD, "predict", model, bad, good])
        assert done.returncode == 1
        assert done.stdout == f"{good}: light (100.0 %)\n"
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"pqd: {bad} cannot be read as an image: ")
        assert call([*PQD, "predict", model, tmp_path]).stdout == done.stdout  # of the folder

    def test_bench_says_what_to_deploy_with(self, tmp_path, model):
        folder = tmp_path / "größe"
        folder.mkdir()
        model.rename(folder / "model.onnx")
        environment = {"PYTHONIOENCODING": "ascii"}
        command = [*PQD, "bench", folder / "model.onnx", "--threads", "1"]
        done = call([*command, "--runtime", "onnxruntime"], environment=environment)
        assert (done.returncode, done.stderr) == (0, "")
        *table, line, path = done.stdout.splitlines()
        assert table[0].rstrip() == f"{tmp_path}/gr??e/model.onnx"
        assert "ONNX Runtime" in table[4]
        assert line.startswith("deploy here with ONNX Runtime on 1 thread: int8 takes ")
        (record,) = folder.glob("*.json")
        assert path == f"{tmp_path}/gr??e/{record.name}"


@pytest.mark.parametrize(
    "line", [[*PQD, "cache", "ls"], [sys.executable, ROOT / "train.py", "--help"]]
)
def test_a_reader_that_leaves_gets_no_message(tmp_path, line):
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, once it has seen enough
    done = subprocess.run(line, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_keep_what_is_finished(tmp_path, sent):
    line = command(tmp_path, "order=pqd", "prune.epochs=1000")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs of a shell inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for shown in process.stdout:
            if shown.startswith("prune"):
                break
        time.sleep(0.2)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().startswith("pqd: interrupted; finished stages are kept")
    (record,) = results(tmp_path / "run")
    assert record["status"] == "interrupted"
    assert [s["stage"] for s in record["stages"]] == ["baseline"]
