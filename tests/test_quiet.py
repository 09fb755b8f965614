"""What others take of the cores, and that measurements wait for each other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pqd import cores
from pqd.measure import quiet

LINUX = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")


def fake(monkeypatch, *moments):
    left = iter(moments)
    monkeypatch.setattr(cores.Others, "_now", lambda self: next(left))


def test_others_are_what_is_busy_and_not_this_process(monkeypatch):
    # Two cores for 10 s: 20 s in all, busy for 15, 12 of them with this process.
    fake(monkeypatch, (100.0, 7.0, 50.0), (115.0, 19.0, 60.0))
    assert cores.Others([0, 1]).share() == 0.15


def test_rounding_of_the_systems_clock_gives_no_negative_share(monkeypatch):
    fake(monkeypatch, (0.0, 0.0, 0.0), (0.99, 1.0, 1.0))
    assert cores.Others([0]).share() == 0.0


def test_a_system_that_does_not_tell(monkeypatch):
    fake(monkeypatch, None)
    assert cores.Others([0]).share() is None


def test_a_system_that_numbers_its_cpus_otherwise():
    assert cores.Others([9999]).share() is None


@LINUX
def test_another_process_on_the_core_is_seen():
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        busy.stdout.readline()
        others = cores.Others([core])
        time.sleep(0.5)
        share = others.share()
        busy.kill()
    assert share > 0.2


def test_one_job_measures_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(quiet.tempfile, "gettempdir", lambda: str(tmp_path))
    code = (
        f"import tempfile; tempfile.gettempdir = lambda: {str(tmp_path)!r}\n"
        "from pqd.measure.quiet import one_at_a_time\n"
        "print('started', flush=True)\n"
        "with one_at_a_time(): print('measures', flush=True)"
    )
    with quiet.one_at_a_time():
        second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == "started\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
    assert second.communicate(timeout=60)[0] == "measures\n"
