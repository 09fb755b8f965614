"""Whether a data set fits into memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import load_dataset, memory
from pqd.errors import UserError

GIB, MIB = 2**30, 2**20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def group(folder: Path, limit: str, used: int, *, version: int = 2, cached: int = 0) -> None:
    """A control group's files as the kernel shows them; half of `cached` is active."""
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "total_" if version == 1 else ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {cached // 2}\n{prefix}active_file {cached // 2}\n"
    )


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Pretends 8 GiB of free memory, and that this process is in the given control groups."""

    class Memory:
        available = 8 * GIB

    root = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "CGROUPS", root)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory.psutil, "virtual_memory", Memory)

    def member(*lines: str) -> Path:
        (tmp_path / "membership").write_text("\n".join(lines) + "\n")
        return root

    return member


def test_without_control_groups_the_machines_memory_counts(cgroups):
    assert memory.available() == 8 * GIB
    cgroups("1:cpu:/", "0::/somewhere")
    assert memory.available() == 8 * GIB


@pytest.mark.parametrize("path", ["a/b", "a", ""])
def test_every_group_around_the_process_counts(cgroups, path):
    root = cgroups("0::/a/b")
    for name in ("a/b", "a", ""):
        group(root / name, "max", 5 * GIB)
    assert memory.available() == 8 * GIB
    group(root / path, str(3 * GIB), 2 * GIB, cached=GIB // 2)
    assert memory.available() == 1.5 * GIB  # cached files give way


def test_version_1_and_a_container_that_sees_its_group_as_the_root(cgroups):
    root = cgroups("5:cpuset,memory:/docker/1234", "4:cpu:/docker/1234", "0::/")
    group(root / "memory", str(2 * GIB), GIB, version=1, cached=MIB)
    assert memory.available() == GIB + MIB
    group(root / "memory", "9223372036854771712", GIB, version=1)  # no limit
    assert memory.available() == 8 * GIB


def test_a_group_beyond_its_limit_leaves_nothing(cgroups):
    group(cgroups("0::/"), str(GIB), 2 * GIB)
    assert memory.available() == 0


def limited(monkeypatch, size: int) -> None:
    monkeypatch.setattr(memory, "available", lambda: size)


def needed(**changes) -> int:
    """What digits of 100x100 pixels (1,348 to train, 449 to test) need: the least that is taken."""
    cfg = DatasetConfig("digits", "", image_size=100, **changes)
    return round(memory.MARGIN * memory._peak(cfg, 1348, 449, 8, 1, True))


def test_what_digits_need():
    image, stored = 100 * 100, 1797 * 8 * 8
    cutting = 1797 * image + 1348 * image
    assert needed(augment=AugmentConfig(0)) == round(1.1 * (cutting - stored))
    training = (1213 + 135 + 449) * image + 1213 * 108**2
    assert needed() == round(1.1 * (training - stored))
    resizing = stored + 1797 * image
    assert needed(train_limit=2, validation=1e-3) == round(1.1 * (resizing - stored))


def test_a_data_set_is_refused_from_the_first_byte_that_is_missing(monkeypatch):
    limited(monkeypatch, needed())
    assert load_dataset(DatasetConfig("digits", "", image_size=100)).test.images.shape[1] == 100
    limited(monkeypatch, needed() - 1)
    with pytest.raises(
        UserError, match=r"\(dataset.image_size=99 or dataset.train_limit=\d+ would"
    ):
        load_dataset(DatasetConfig("digits", "", image_size=100))


def test_the_message_names_need_limit_and_what_would_fit(monkeypatch):
    limited(monkeypatch, 25 * MIB)
    with pytest.raises(UserError) as error:
        load_dataset(DatasetConfig("digits", "", image_size=100))
    assert str(error.value) == (
        "1797 images of 100x100 pixels need 0.03 GiB of memory (decoded, cut into splits, padded), "
        "0.02 GiB are available; lower dataset.image_size, dataset.train_limit or "
        "dataset.augment.crop_padding (dataset.image_size=85 or dataset.train_limit=462 would fit)"
    )
    for changes in ({"image_size": 85}, {"image_size": 100, "train_limit": 462}):
        load_dataset(DatasetConfig("digits", "", **changes))
    for changes in ({"image_size": 86}, {"image_size": 100, "train_limit": 463}):
        with pytest.raises(UserError, match="GiB are available"):
            load_dataset(DatasetConfig("digits", "", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 100_000},
        {"image_size": 10**30},
        {"augment": AugmentConfig(crop_padding=10**6)},
    ],
)
def test_absurd_settings_are_one_line(changes):
    with pytest.raises(UserError, match=r"^1797 images .* GiB are available; lower [^\n]*$"):
        load_dataset(DatasetConfig("digits", "", **changes))


def test_both_splits_of_an_image_folder_are_counted_before_any_is_decoded(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4 if split == "test" else 2):
                Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{i}.png")
    cfg = DatasetConfig("imagefolder", str(tmp_path), image_size=64, validation=0.25)
    need = round(1.1 * (12 + 4) * 64 * 64 * 3)
    monkeypatch.setattr("pqd.data.imagefolder.decode", lambda *args, **kwargs: 1 / 0)
    limited(monkeypatch, need - 1)
    with pytest.raises(UserError, match=r"^12 images of 64x64 pixels need .*image_size=63"):
        load_dataset(cfg)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limited(monkeypatch, need)
    assert len(load_dataset(cfg).test) == 8


PEAK = """
import sys
from pathlib import Path
import torch
from pqd.config import DatasetConfig
from pqd.data import TrainBatches, load_dataset, memory

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

load_dataset(DatasetConfig("digits", ""))  # loads the libraries
cfg = DatasetConfig("imagefolder", sys.argv[1], image_size=256)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
data = load_dataset(cfg)
TrainBatches(data, cfg.augment, 8, torch.device("cpu"))
print(status("VmHWM") - before, memory._peak(cfg, 400, 100, 256, 3, False))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_what_is_counted_is_what_is_taken(tmp_path):
    for split, count in (("train", 200), ("test", 50)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (2, 2), (i, 3, 4)).save(tmp_path / split / name / f"{i}.bmp")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    taken, counted = map(int, done.stdout.split())
    assert counted == (500 + 400) * 256 * 256 * 3
    assert 0.9 * counted < taken < memory.MARGIN * counted + 64 * MIB


ULIMIT = """
import resource
import psutil
from pqd.config import DatasetConfig
from pqd.data import load_dataset
from pqd.errors import UserError

load_dataset(DatasetConfig("digits", "", image_size=9))  # loads the libraries
most = psutil.Process().memory_info().vms + 2**28
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    load_dataset(DatasetConfig("digits", "", image_size=512))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_limit_of_the_shell_is_respected():
    done = subprocess.run(
        [sys.executable, "-c", ULIMIT], capture_output=True, text=True, check=True
    )
    assert "1797 images of 512x512 pixels need 0.84 GiB of memory" in done.stdout
    assert "0.25 GiB are available" in done.stdout
