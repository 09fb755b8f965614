"""The store of finished work: what is found damaged, what is pruned, and who has to wait."""

import errno
import fcntl
import os
from datetime import UTC, datetime, timedelta

import pytest

import pqd.cache
from pqd.cache import MANIFEST, Cache, key_of
from pqd.errors import UserError

NOW = datetime.now(UTC)


@pytest.fixture
def said(caplog):
    """Returns the lines told so far."""
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def fill(folder):
    (folder / "weights").write_bytes(b"w" * 100)


def refuse(folder):
    raise AssertionError(f"{folder} is made again")


def grow_old(path, days):
    moment = (NOW - timedelta(days=days)).timestamp()
    for file in (*path.rglob("*"), path):
        os.utime(file, (moment, moment))


def shown(items):
    return {item.key: item.label for item in items}


def test_an_entry_is_made_once_and_read_again(cache, said):
    made, found = cache.get("a", "x", fill), cache.get("a", "x", refuse)
    assert (made.cached, found.cached) == (False, True)
    assert made.files == found.files == (cache.folder / "a/weights",)
    assert said() == []


@pytest.mark.parametrize("missing", [None, "weights", MANIFEST])
def test_a_damaged_entry_is_made_again_saying_so_once(cache, said, missing):
    cache.get("a", "x", fill)
    if missing:
        (cache.folder / "a" / missing).unlink()
    else:
        (cache.folder / "a/weights").write_bytes(b"v" * 100)
    cache.items()
    assert said() == []  # to look at it makes nothing
    assert not cache.get("a", "x", fill).cached
    assert said() == [f"cache entry {cache.folder}/a is damaged; it is made again"]
    assert (cache.folder / "a/weights").read_bytes() == b"w" * 100


class TestFull:
    """What cannot be made is removed, and named: on a full disk that makes room to say so."""

    def make(self, cache, error):
        def fail(folder):
            fill(folder)
            raise error

        with pytest.raises(type(error) if isinstance(error, OSError) else OSError) as caught:
            cache.get("a", "x", fail)
        assert [path.name for path in cache.folder.iterdir()] == ["a.lock"]
        return caught.value

    @pytest.mark.parametrize("name", [None, "weights"])
    def test_without_space(self, cache, name):
        error = self.make(cache, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name))
        assert error.filename == (name or str(cache.folder / "a.partial"))

    def test_what_is_written_in_rust(self, cache):
        """Such as safetensors, whose errors are of a type of their own."""
        text = "Error while serializing: I/O error: No space left on device (os error 28)"
        error = self.make(cache, RuntimeError(text))
        assert (error.errno, error.filename) == (errno.ENOSPC, str(cache.folder / "a.partial"))


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cache\.dir=.* cannot be made: File exists"):
        Cache(tmp_path / "cache").get("a", "x", refuse)


class TestPrune:
    def test_by_last_use_whatever_it_is(self, cache):
        used, unused, damaged, new, killed = (key_of({"number": i}) for i in range(5))
        for key in (used, unused, damaged, new):
            cache.get(key, f"label of {key}", fill)
        (cache.folder / damaged / MANIFEST).write_text("{")
        cache.checkpoint(killed).write_bytes(b"c" * 5)
        (cache.folder / f"{killed}.checkpoint.part").write_bytes(b"c" * 3)
        (cache.folder / f"{killed}.partial").mkdir()
        (cache.folder / f"{killed}.partial/weights").write_bytes(b"w" * 2)
        for path in cache.folder.iterdir():
            if path.name.partition(".")[0] != new:
                grow_old(path, 40)
        cache.get(used, "x", refuse)  # which is a use

        expected = {
            unused: f"label of {unused}",
            damaged: "damaged",
            killed: "unfinished",
            used: f"label of {used}",
            new: f"label of {new}",
        }
        assert shown(cache.items()) == expected
        pruned = {item.key: item for item in cache.prune(NOW - timedelta(days=30))}
        assert set(pruned) == {unused, damaged, killed}
        assert pruned[killed].bytes == 10
        assert pruned[unused].used == NOW - timedelta(days=40)
        assert set(shown(cache.items())) == {used, new}
        left = {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}
        assert left == {used, new}

    def test_not_what_a_job_is_at(self, cache):
        pruned, key = [], key_of({})

        def prune_meanwhile(folder):
            fill(folder)
            grow_old(folder, 40)
            pruned.extend(cache.prune(NOW - timedelta(days=30)))

        cache.get(key, "x", prune_meanwhile)
        assert pruned == []
        assert cache.get(key, "x", refuse).cached

    @pytest.mark.parametrize("name", ["thesis", ".nfs01", "cafe", "0123456789abcdef0"])
    def test_nothing_that_is_not_the_caches(self, cache, name):
        (cache.folder / name).mkdir(parents=True)
        (cache.folder / name / "a.tex").write_text("years of work")
        grow_old(cache.folder, 400)
        assert cache.items() == list(cache.prune(NOW)) == []
        assert (cache.folder / name / "a.tex").read_text() == "years of work"
        assert [path.name for path in cache.folder.iterdir()] == [name]

    def test_a_folder_that_is_not_there_is_empty(self, cache):
        assert cache.items() == list(cache.prune(NOW)) == []


class TestLock:
    def test_who_waits_finds_what_the_other_made(self, cache, monkeypatch):
        """The other job makes the entry and lets go as soon as this one says that it waits."""
        cache.folder.mkdir()
        other = (cache.folder / "a.lock").open("w")
        fcntl.flock(other, fcntl.LOCK_EX)

        said = []

        def say(line, *values):
            said.append(line % values)
            fcntl.flock(other, fcntl.LOCK_UN)
            Cache(cache.folder).get("a", "x", fill)

        monkeypatch.setattr(pqd.cache.log, "warning", say)
        assert cache.get("a", "label", refuse).cached
        assert said == ["label: another job is at it, waiting for its result"]
        other.close()

    def test_the_folder_is_listed_once_the_lock_is_held(self, cache, monkeypatch):
        """What NFS remembers of a name that was not there must not outlive the wait."""
        listed = []
        monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or [])
        cache.get("a", "x", lambda folder: listed.append("made") or fill(folder))
        assert listed[:2] == [cache.folder, "made"]

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_where_there_is_no_flock_it_is_refused(self, cache, monkeypatch, code):
        def no_flock(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", no_flock)
        with pytest.raises(UserError) as caught:
            cache.get("a", "x", refuse)
        assert str(caught.value) == (
            f"{cache.folder} cannot be locked: {os.strerror(code)}; it must be writable, on a "
            "local disk, NFSv4, or NFSv3 with lockd"
        )
