"""The CPU: its name and instruction sets, the cores that count, and pinning to them."""

import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from pqd import measure, runtimes
from pqd.config import RuntimeConfig
from pqd.measure import cpu, timings
from tiny_onnx import int8_network

has_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system has no affinity"
)


def fake_cpu(monkeypatch, architecture, info):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(cpu, "cpuinfo", lambda: info)
    monkeypatch.setattr(cpu, "slow_cpuinfo", lambda: {"brand_raw": "slow", "flags": ["avx2"]})


def test_isa_is_read_in_the_kernels_spelling(monkeypatch):
    flags = "fpu avx2 avx512f avx512_vnni avx_vnni amx_int8"
    fake_cpu(monkeypatch, "x86_64", {"model name": "Fast", "flags": flags})
    assert cpu.cpu_name() == "Fast"
    assert cpu.isa() == ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"]
    assert measure.has_vnni()
    fake_cpu(monkeypatch, "x86_64", {"flags": "fpu avx2"})
    assert (cpu.isa(), measure.has_vnni()) == (["avx2"], False)
    fake_cpu(monkeypatch, "aarch64", {"features": "fp asimd asimddp i8mm"})
    assert (cpu.isa(), measure.has_vnni()) == (["neon", "asimddp", "i8mm"], True)
    fake_cpu(monkeypatch, "AMD64", {})  # Windows: py-cpuinfo tells
    assert (cpu.cpu_name(), cpu.isa(), measure.has_vnni()) == ("slow", ["avx2"], False)


def test_thread_counts_are_distinct_and_fit_the_machine(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "cores", lambda: [0, 2, 4, 6])
    assert cpu.thread_counts([1, 0]) == [1, 4]
    assert cpu.thread_counts([4, 0, 2]) == [2, 4]
    assert not caplog.records
    assert cpu.thread_counts([16, 1]) == [1, 4]
    assert "16 threads asked for, 4 cores usable" in caplog.text
    monkeypatch.setattr(cpu, "cores", lambda: [0])
    assert cpu.thread_counts([1, 0]) == [1]


@pytest.mark.parametrize(
    ("listed", "first", "all_of_first"),
    [
        (["0,2", "1,3", "0,2", "1,3"], [0, 1], [0, 2]),
        (["0-1", "0-1", "2-3", "2-3"], [0, 2], [0, 1]),
    ],
)
def test_what_runs_on_the_other_thread_of_a_core_counts(
    monkeypatch, tmp_path, listed, first, all_of_first
):
    for cpu_, siblings in enumerate(listed):
        file = tmp_path / f"cpu{cpu_}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{siblings}\n")
    monkeypatch.setattr(cpu, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(cpu, "_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cpu.cores() == first
    assert cpu.siblings(first[:1]) == all_of_first
    assert cpu.siblings([9]) == [9]  # not told
    watched = []
    quiet_ = SimpleNamespace(share=lambda: 0.0)
    monkeypatch.setattr(timings, "Others", lambda cpus: watched.append(cpus) or quiet_)
    monkeypatch.setattr(timings, "interleave", lambda *_: {})
    monkeypatch.setattr(timings, "pinned", lambda *_: nullcontext())
    timings.measure(runtimes.get("onnxruntime"), {}, 1, np.zeros(1, np.float32), RuntimeConfig())
    assert watched == [all_of_first]


@pytest.mark.parametrize("file", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_fastest_cores_come_first(monkeypatch, tmp_path, file):
    for number, speed in enumerate([530, 530, 1024, 1024]):  # as many boards number them
        told = tmp_path / f"cpu{number}" / file
        told.parent.mkdir(parents=True)
        told.write_text(f"{speed}\n")
    monkeypatch.setattr(cpu, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for quota, found in ((None, [2, 3, 0, 1]), (3, [2, 3, 0])):
        monkeypatch.setattr(cpu, "_quota", lambda quota=quota: quota)
        assert cpu.cores() == found


@has_affinity
def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as pool:
        earlier = pool.submit(threading.get_native_id).result()
        with cpu.pinned(1):
            assert os.sched_getaffinity(0) == {cpu.cores()[0]}
            assert os.sched_getaffinity(earlier) == {cpu.cores()[0]}
        assert os.sched_getaffinity(earlier) == before
    assert os.sched_getaffinity(0) == before


@has_affinity
def test_what_is_started_while_pinned_is_free_afterwards():
    before = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as pool:  # as OpenVINO's threads outlive a measurement
        with cpu.pinned(1):
            later = pool.submit(threading.get_native_id).result()
            assert os.sched_getaffinity(later) == {cpu.cores()[0]}
        assert os.sched_getaffinity(later) == before


MEASURED_FIRST = """
import os, sys
from pathlib import Path
import numpy as np
from pqd import runtimes
from pqd.config import RuntimeConfig
from pqd.measure import cpu, timings

runtime, model, images = runtimes.get(sys.argv[1]), Path(sys.argv[2]), np.zeros((1, 1, 4, 4), "f")
before = os.sched_getaffinity(0)
once = RuntimeConfig(min_calls=1, min_seconds=0, blocks=1)
timings.measure(runtime, {"": model}, 1, images, once)
for threads in (1, 2):
    session = runtime.open(model, threads)
    for call in (lambda: session(images), session.bind(images)):
        call()
        assert os.sched_getaffinity(0) == before, (threads, os.sched_getaffinity(0))
if runtime.name == "openvino":
    used = session._compile(images.shape).get_property("INFERENCE_NUM_THREADS")
    assert used == min(2, len(cpu.cores())), used
"""


@has_affinity
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_a_runtime_finds_while_pinned_does_not_stay(tmp_path, runtime):
    pytest.importorskip(runtime)
    model = int8_network(tmp_path / "model.onnx")
    command = [sys.executable, "-c", MEASURED_FIRST, runtime, model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@has_affinity
def test_a_thread_that_ends_while_the_others_are_pinned(monkeypatch):
    before = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(threading.get_native_id).result()
    monkeypatch.setattr(cpu, "_threads", lambda: [os.getpid(), ended])
    with cpu.pinned(1):
        assert os.sched_getaffinity(0) == {cpu.cores()[0]}
    assert os.sched_getaffinity(0) == before
