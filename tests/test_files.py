"""Files are whole or not there, and an error names the file that was asked for."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pqd.errors import one_line
from pqd.files import read_json, replacing, write, write_json, write_tensors


def test_a_file_is_replaced_whole(tmp_path):
    write(tmp_path / "a.txt", "größer")
    assert (tmp_path / "a.txt").read_bytes() == "größer".encode()
    with pytest.raises(RuntimeError, match="half"):
        half_written(tmp_path / "a.txt", RuntimeError("half"))
    assert (tmp_path / "a.txt").read_text("utf-8") == "größer"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    write_json(tmp_path / "a.txt", {"a": [1]})
    assert read_json(tmp_path / "a.txt") == {"a": [1]}


def half_written(path, error):
    with replacing(path) as file:
        file.write(b"half")
        raise error


def test_tensors_are_synced_and_as_readable_as_any_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    write(tmp_path / "a.txt", "")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    made = (tmp_path / "a.safetensors").stat()
    assert made.st_mode == (tmp_path / "a.txt").stat().st_mode
    assert made.st_ino in synced
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe", "a")
    assert os.read(reader, 9) == b"a"
    os.close(reader)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]
    write(Path(os.devnull), "a")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path):
    path = tmp_path / ("長" * 80)  # 240 bytes
    write(path, "a")
    assert path.read_text() == "a"


def test_an_error_names_the_file(tmp_path):
    for path, reason in [
        (tmp_path / "none" / "a.txt", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ]:
        with pytest.raises(OSError, match=reason) as error:
            write(path, "")
        assert one_line(error.value) == f"{path}: {reason}"
    other = FileNotFoundError(2, "No such file or directory", "other.txt")  # read meanwhile
    with pytest.raises(FileNotFoundError) as error:
        half_written(tmp_path / "a.txt", other)
    assert one_line(error.value) == "other.txt: No such file or directory"


def test_a_full_disk_names_the_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pqd.errors import one_line\n"
        "from pqd.files import write\n"
        "try: write(Path(sys.argv[1]), 'x' * 10)\n"
        "except OSError as error: print(one_line(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.txt"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.stdout == f"{tmp_path}/a.txt: File too large\n"
    assert not list(tmp_path.iterdir())
