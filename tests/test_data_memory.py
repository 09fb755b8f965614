"""Whether a data set fits into memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import load_dataset, memory
from pqd.data.stored import StoredImages
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
    return round(memory.MARGIN * memory._peak(cfg, 1348, 449, 8, 1, False))


def test_what_digits_need():
    image, stored = 100 * 100, 1797 * 8 * 8
    cutting = 1797 * image + 1348 * image
    assert needed() == round(1.1 * (cutting - stored))
    training = (1213 + 135 + 449) * image + 128 * (image + 1100**2)
    assert needed(augment=AugmentConfig(500)) == round(1.1 * (training - stored))
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


def test_what_an_earlier_job_left_in_cycles_is_freed_first(monkeypatch):
    collected = []
    monkeypatch.setattr(memory.gc, "collect", lambda: collected.append(True))
    monkeypatch.setattr(memory, "available", lambda: needed() if collected else 0)
    assert load_dataset(DatasetConfig("digits", "", image_size=100)).test.images.shape[1] == 100


def test_the_message_names_need_limit_and_what_would_fit(monkeypatch):
    limited(monkeypatch, 25 * MIB)
    with pytest.raises(UserError) as error:
        load_dataset(DatasetConfig("digits", "", image_size=100))
    assert str(error.value) == (
        "1797 images of 100x100 pixels need 0.03 GiB of memory (decoded, cut into splits, padded), "
        "0.02 GiB are available; lower dataset.image_size, dataset.train_limit or "
        "dataset.augment.crop_padding (dataset.image_size=87 or dataset.train_limit=462 would fit)"
    )
    for changes in ({"image_size": 87}, {"image_size": 100, "train_limit": 462}):
        load_dataset(DatasetConfig("digits", "", **changes))
    for changes in ({"image_size": 88}, {"image_size": 100, "train_limit": 463}):
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


def folder_of(root: Path, train: int, test: int, side: int) -> DatasetConfig:
    """Two classes with so many images each, all of them different."""
    for split, count in (("train", train), ("test", test)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (2, 2), (i, 3, 4)).save(root / split / name / f"{i}.bmp")
    return DatasetConfig("imagefolder", str(root), image_size=side, validation=0.25)


def test_both_splits_of_an_image_folder_are_counted_before_any_is_decoded(tmp_path, monkeypatch):
    cfg = folder_of(tmp_path, 2, 4, 64)
    need = 12 * 64 * 64 * 3
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pqd.data.imagefolder.decode", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=need - 1))
    with pytest.raises(
        UserError,
        match=r"^12 images of 64x64 pixels need 0.00 GiB of disk in \S*cache/pqd, 0.00 GiB are",
    ):
        load_dataset(cfg)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=need))
    assert len(load_dataset(cfg).test) == 8


def test_images_in_a_file_are_loaded_where_they_are_few(tmp_path, monkeypatch):
    cfg = folder_of(tmp_path, 2, 4, 64)
    size = 12 * 64 * 64 * 3
    limited(monkeypatch, 2 * size - 1)  # half of it is to stay free
    monkeypatch.setattr(memory, "check", lambda *args, **kwargs: None)
    assert isinstance(load_dataset(cfg).train.images, StoredImages)
    limited(monkeypatch, 2 * size)
    assert isinstance(load_dataset(cfg).train.images, torch.Tensor)
    monkeypatch.setattr(memory, "STORED", size - 1)
    assert isinstance(load_dataset(cfg).train.images, StoredImages)


PEAK = """
import sys
from pathlib import Path
import torch
from pqd.config import DatasetConfig
from pqd.data import TrainBatches, decoding, load_dataset, memory

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

memory.STORED = 0
decoding.PART = 2**20
load_dataset(DatasetConfig("digits", ""))  # loads the libraries
cfg = DatasetConfig(sys.argv[1], sys.argv[2], image_size=256)
for _ in range(2):  # decoded, then from the cache
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    data = load_dataset(cfg)
    batches = TrainBatches(data, cfg.augment, 8, torch.device("cpu"))
    for batch in batches.epoch(0):
        pass
    print(status("VmHWM") - before)
    del data, batches, batch
"""


def peaks(name: str, root: Path | str) -> list[int]:
    """Bytes that loading images of 256x256 pixels and an epoch of them take at most."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, name, str(root)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_what_is_counted_is_what_is_taken():
    counted = memory._peak(DatasetConfig("digits", "", image_size=256), 1348, 449, 8, 1, False)
    assert counted == (1797 + 1348) * 256 * 256 - 1797 * 64
    assert 0.9 * counted < peaks("digits", "")[0] < memory.MARGIN * counted + 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_images_in_a_file_take_no_memory(tmp_path):
    folder_of(tmp_path, 400, 100, 256)
    size = 1000 * 256 * 256 * 3
    assert max(peaks("imagefolder", tmp_path)) < size / 2


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
