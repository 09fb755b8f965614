"""CIFAR-10 and CIFAR-100 from torchvision's files, and downloaded."""

import hashlib
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from pqd.config import DatasetConfig
from pqd.data import Dataset, load_dataset
from pqd.errors import UserError


def cifar(name: str, root: Path) -> Dataset:
    return load_dataset(DatasetConfig(name=name, root=str(root), validation=0.5))


def write_torchvision(root: Path, monkeypatch, name: str) -> np.ndarray:
    """Writes torchvision's files as an old numpy pickled them; returns 4 train, 4 test images."""
    import pqd.backbones._torchvision  # noqa: F401, I001
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    planes = np.arange(8)[:, None].repeat(3072, 1).astype(np.uint8)
    planes[:, 1024:] += 50  # green, then blue
    planes[:, 2048:] += 50

    def write(file: str, content: dict) -> list[str]:
        old = pickle.dumps(content, 2).replace(b"\x89\x88", b"K\x00K\x01")  # align=0, copy=1
        (folder / file).write_bytes(old)
        return [file, hashlib.md5(old).hexdigest()]

    train = write("a", {"data": planes[:4], key: [0, 1, 0, 1], "coarse_labels": [7] * 4})
    test = write("b", {"data": planes[4:], key: [1, 1, 0, 0], "coarse_labels": [7] * 4})
    meta = write("c", {"label_names": ["x"], "fine_label_names": ["x"]})
    monkeypatch.setattr(kind, "train_list", [train])
    monkeypatch.setattr(kind, "test_list", [test])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": meta[0], "md5": meta[1]})
    return planes.reshape(8, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("below", ["", "name"])
def test_torchvisions_files(tmp_path, monkeypatch, name, below):
    images = write_torchvision(tmp_path / (name if below else ""), monkeypatch, name)
    data = cifar(name, tmp_path)
    assert np.array_equal(data.test.images.numpy(), images[4:])
    others = torch.cat([data.train.images, data.validation.images])
    assert sorted(others.flatten(1).tolist()) == sorted(images[:4].reshape(4, -1).tolist())
    assert data.test.labels.tolist() == [1, 1, 0, 0]
    assert len(data.classes) == int(name[5:])


def test_missing_cifar_is_downloaded(tmp_path, monkeypatch):
    images = write_torchvision(tmp_path / "elsewhere", monkeypatch, "cifar10")
    from torchvision.datasets import CIFAR10

    root = tmp_path / "new"
    root.mkdir()

    def download(self):
        (tmp_path / "elsewhere" / self.base_folder).rename(Path(self.root) / self.base_folder)

    monkeypatch.setattr(CIFAR10, "download", download)
    assert np.array_equal(cifar("cifar10", root).test.images.numpy(), images[4:])


def test_a_root_that_does_not_exist_is_not_made(tmp_path):
    root = tmp_path / "mistyped" / "data"
    with pytest.raises(UserError) as error:
        cifar("cifar10", root)
    assert str(error.value).startswith(
        f"cifar10 is neither in {root} nor could it be downloaded (this folder does not exist"
    )
    assert "(1) run once" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mistyped").exists()


def test_the_default_root_is_made(tmp_path, monkeypatch):
    images = write_torchvision(tmp_path / "elsewhere", monkeypatch, "cifar10")
    from torchvision.datasets import CIFAR10

    def download(self):
        (tmp_path / "elsewhere" / self.base_folder).rename(Path(self.root) / self.base_folder)

    monkeypatch.setattr(CIFAR10, "download", download)
    monkeypatch.chdir(tmp_path)
    data = load_dataset(DatasetConfig(name="cifar10", root="data", validation=0.5))
    assert np.array_equal(data.test.images.numpy(), images[4:])


def test_two_runs_download_once(tmp_path, monkeypatch, caplog):
    """The second waits for the first, and finds the data complete."""
    write_torchvision(tmp_path / "elsewhere", monkeypatch, "cifar10")
    from torchvision.datasets import CIFAR10

    downloads = []
    (tmp_path / "root").mkdir()
    entered, go_on = threading.Event(), threading.Event()

    def download(self):  # as torchvision's: nothing to do where the files are complete
        if self._check_integrity():
            return
        downloads.append(self.root)
        entered.set()
        assert go_on.wait(20)
        (tmp_path / "elsewhere" / self.base_folder).rename(Path(self.root) / self.base_folder)

    monkeypatch.setattr(CIFAR10, "download", download)
    with caplog.at_level("INFO", "pqd"), ThreadPoolExecutor(2) as pool:
        first = pool.submit(cifar, "cifar10", tmp_path / "root")
        assert entered.wait(20)
        second = pool.submit(cifar, "cifar10", tmp_path / "root")
        while "another run downloads cifar10" not in caplog.text:
            assert not second.done()
            time.sleep(0.01)
        go_on.set()
        assert first.result().fingerprint == second.result().fingerprint
    assert len(downloads) == 1


def test_a_root_that_cannot_be_written_names_three_ways(tmp_path, monkeypatch):
    write_torchvision(tmp_path / "elsewhere", monkeypatch, "cifar10")

    def refuse(path, on_wait):
        raise UserError(f"{path.parent} cannot be locked: Read-only file system")

    monkeypatch.setattr("pqd.data.cifar.held", refuse)
    (tmp_path / "root").mkdir()
    with pytest.raises(
        UserError, match=r"downloaded \(/.*/root cannot be locked: Read-only.*\); three ways.*\(3\)"
    ):
        cifar("cifar10", tmp_path / "root")


@pytest.mark.parametrize(
    "reason", [URLError("no route"), RuntimeError("File not found or corrupted.")]
)
def test_failing_download_names_three_ways(tmp_path, monkeypatch, reason):
    write_torchvision(tmp_path / "elsewhere", monkeypatch, "cifar100")
    from torchvision.datasets import CIFAR100

    def download(self):
        raise reason

    monkeypatch.setattr(CIFAR100, "download", download)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError) as error:
        cifar("cifar100", tmp_path / "none")
    message = str(error.value)
    assert "\n" not in message
    for part in (
        type(reason).__name__,
        "(1) run once with access to the internet",
        f"(2) put torchvision's folder cifar-100-python into {tmp_path / 'none'}",
        "(3) put the parquet shards train-* and test-* of the Hugging Face data set uoft-cs/"
        f"cifar100 into {tmp_path / 'none' / 'cifar100'}",
        "PQD_DATA",
    ):
        assert part in message


def test_tampered_torchvision_files_are_not_unpickled(tmp_path, monkeypatch):
    write_torchvision(tmp_path, monkeypatch, "cifar10")
    from torchvision.datasets import CIFAR10

    (tmp_path / CIFAR10.base_folder / "a").write_bytes(pickle.dumps(Path))
    monkeypatch.setattr(CIFAR10, "download", lambda self: None)
    with pytest.raises(UserError, match="not found or corrupted"):
        cifar("cifar10", tmp_path)
