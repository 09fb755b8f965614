"""Which files of an image folder are read, and what is said of the others."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from pqd.config import DatasetConfig
from pqd.data import load_dataset
from pqd.data.folders import list_classes, root_of
from pqd.errors import UserError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def train(tmp_path) -> Path:
    """One image in each of two classes."""
    for name in ("cat", "dog"):
        image(tmp_path / "train" / name / "0.png")
    return tmp_path / "train"


def names(train: Path) -> list[str]:
    """The files of class cat, relative to its folder."""
    return [file.relative_to(train / "cat").as_posix() for file in list_classes(train)["cat"]]


def passed_over(train: Path, caplog) -> str:
    """What is said of the files that are not read."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "pqd"):
        list_classes(train)
    return "\n".join(record.message for record in caplog.records)


def test_images_in_nested_folders_are_read(train, caplog):
    image(train / "cat" / "tabby" / "young" / "1.png")
    image(train / "cat" / "tabby" / "2.JPG")
    image(train / "cat" / "siam" / "3.png")
    assert names(train) == ["0.png", "siam/3.png", "tabby/2.JPG", "tabby/young/1.png"]
    assert passed_over(train, caplog) == ""


def test_nested_images_are_all_used_and_labelled_by_class(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(10):
                image(tmp_path / split / name / ("." if i % 2 else "deeper") / f"{i}.png")
    data = load_dataset(DatasetConfig("imagefolder", str(tmp_path), validation=0.5))
    for split, each in ((data.train, 5), (data.validation, 5), (data.test, 10)):
        assert split.labels.bincount().tolist() == [each, each]


def test_what_is_passed_over_is_counted_in_one_line(train, caplog):
    for name in ("._0.png", ".hidden/1.png", "../.git/2.png"):
        image(train / "cat" / name)
    (train / "cat" / "notes.txt").write_text("")
    (train / "README.md").write_text("")
    (train / "cat" / "deeper.png" / "empty").mkdir(parents=True)
    (train / "cat" / "gone.png").symlink_to("nowhere.png")
    (train / "cat" / "itself.png").symlink_to("itself.png")
    os.mkfifo(train / "cat" / "pipe.png")  # reading it would never end
    image(train / "9.png")
    assert names(train) == ["0.png"]
    assert passed_over(train, caplog) == (
        f"passed over in {train}: broken links or no regular files (3), folders without images (1),"
        " hidden (3), images in no class folder (1), other files (2)"
    )


@pytest.mark.parametrize("target", [".", "..", "../..", "inner", "inner/back"])
def test_a_link_to_a_folder_met_before_is_not_followed(train, caplog, target):
    image(train / "cat" / "inner" / "1.png")
    (train / "cat" / "inner" / "back").symlink_to("..")
    (train / "cat" / "link").symlink_to(target)
    assert [Path(name).name for name in names(train)] == ["0.png", "1.png"]
    assert passed_over(train, caplog) == f"passed over in {train}: links to folders met before (2)"


def test_links_to_images_elsewhere_are_followed(train, tmp_path):
    image(tmp_path / "store" / "cats" / "5.png")
    image(tmp_path / "store" / "6.png")
    (train / "cat" / "more").symlink_to(tmp_path / "store" / "cats")
    (train / "cat" / "6.png").symlink_to(tmp_path / "store" / "6.png")
    (train / "bird").symlink_to(tmp_path / "store" / "cats")
    assert names(train) == ["0.png", "6.png", "more/5.png"]
    assert list(list_classes(train)) == ["bird", "cat", "dog"]


@pytest.mark.parametrize("name", ["猫 😺", "naïve cat", "it's", "a,b=c"])
def test_names_in_any_script_are_kept(train, name):
    (train / "cat").rename(train / name)
    assert sorted(list_classes(train)) == sorted([name, "dog"])


@pytest.mark.parametrize(
    ("name", "shown"), [(b"c\nt", r"c\\nt"), (b"c\x1b[1mt", r"c\\x1b"), (b"c\xfft", r"c\\udcfft")]
)
def test_classes_that_cannot_be_printed_are_refused(train, name, shown):
    os.rename(os.fsencode(train / "cat"), os.fsencode(train) + b"/" + name)
    with pytest.raises(UserError, match=f"{shown}.*cannot be printed; rename it") as error:
        list_classes(train)
    assert "\n" not in str(error.value)


def test_a_class_without_images_is_refused_however_deep_it_is(train):
    (train / "bird" / "a" / "b").mkdir(parents=True)
    (train / "bird" / "a" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="train/bird holds no image file"):
        list_classes(train)


@pytest.fixture
def denied(monkeypatch):
    """Denies access to a path, as the root user, who runs some tests, never is."""

    def deny(function: str, path: Path) -> None:
        real = getattr(os, function)

        def guarded(given=".", *args, **kwargs):
            if Path(os.fsdecode(given)) == path:
                raise PermissionError(13, "Permission denied", str(path))
            return real(given, *args, **kwargs)

        monkeypatch.setattr(os, function, guarded)

    return deny


def test_a_folder_that_cannot_be_read_is_refused(train, denied):
    image(train / "cat" / "secret" / "1.png")
    denied("scandir", train / "cat" / "secret")
    with pytest.raises(UserError, match=r"cat/secret: Permission denied: this folder's images"):
        list_classes(train)


@pytest.mark.parametrize(("function", "name"), [("scandir", "train"), ("stat", "train/cat/0.png")])
def test_what_cannot_be_looked_at_is_one_line(train, denied, function, name):
    denied(function, train.parent / name)
    with pytest.raises(UserError) as error:
        load_dataset(DatasetConfig("imagefolder", str(train.parent)))
    expected = (
        f"dataset.root={train.parent} cannot be read: {train.parent / name}: Permission denied"
    )
    assert str(error.value) == expected


def test_a_split_that_is_a_file(train):
    with pytest.raises(UserError, match=r"train/cat/0.png is no folder; images are read from"):
        list_classes(train / "cat" / "0.png")


@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("{tmp}/file", "Not a directory"),
        ("{tmp}/file/below", "Not a directory"),
        ("{tmp}/" + "x" * 300, "File name too long"),
        ("~nobody_of_this_name/images", "Could not determine home directory."),
        ("a\0b", "embedded null byte"),
    ],
)
def test_roots_that_are_no_folder(tmp_path, name, root, reason):
    (tmp_path / "file").write_text("")
    root = root.replace("{tmp}", str(tmp_path))
    with pytest.raises(UserError) as error:
        load_dataset(DatasetConfig(name, root))
    printed = root.replace("a\0b", r"'a\x00b'")
    start = f"dataset.root={printed} cannot be read ({reason}); give the folder that holds "
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
def test_roots_that_cannot_be_listed_or_are_not_given(tmp_path, name, denied):
    denied("scandir", tmp_path)
    with pytest.raises(UserError, match=r"dataset.root=.* cannot be read \(Permission denied\)"):
        load_dataset(DatasetConfig(name, str(tmp_path)))
    with pytest.raises(UserError, match=r"dataset.root is not set; give the folder that holds"):
        load_dataset(DatasetConfig(name, ""))


def test_root_is_absolute_and_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert root_of(DatasetConfig("imagefolder", "~/x"), "images") == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert root_of(DatasetConfig("imagefolder", "x"), "images") == tmp_path / "x"
