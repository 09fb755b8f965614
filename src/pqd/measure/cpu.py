"""The CPU: what it can do, which cores this process may use, pinning to some of them."""

import logging
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from pqd.runtimes.base import Runtime

log = logging.getLogger(__name__)

# Our name for an instruction-set extension, and the other spellings of it: Linux and py-cpuinfo
# differ, and ARM kernels name the INT8 dot product after its register width.
ISA = {
    "avx2": (),
    "avx512f": (),
    "avx512_vnni": ("avx512vnni",),
    "avx_vnni": ("avxvnni",),
    "avx512_bf16": ("avx512bf16",),
    "amx_int8": (),
    "amx_bf16": (),
    "neon": ("asimd",),
    "asimddp": ("dotprod",),
    "i8mm": (),
}
TOPOLOGY = Path("/sys/devices/system/cpu")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


@cache
def cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo, keys in lower case; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


@cache
def slow_cpuinfo() -> dict[str, Any]:
    """py-cpuinfo's answer, which takes a second: for what /proc/cpuinfo does not tell."""
    from cpuinfo import get_cpu_info

    return get_cpu_info()


def cpu_name() -> str:
    """The CPU's model name, e.g. `"AMD EPYC"`."""
    name = cpuinfo().get("model name") or slow_cpuinfo().get("brand_raw")
    return str(name or platform.machine())


def isa() -> list[str]:
    """The instruction-set extensions that decide INT8 and FP32 speed, those of `ISA` it has."""
    listed = cpuinfo().get("flags") or cpuinfo().get("features")
    flags = set(listed.split() if listed else slow_cpuinfo().get("flags", ()))
    return [name for name, spellings in ISA.items() if flags & {name, *spellings}]


def has_vnni() -> bool:
    """Whether INT8 products are summed without saturation.

    x86 without VNNI or AMX adds pairs of U8 x S8 products in 16 bits (`vpmaddubsw`), which
    saturates for weights beyond +-64: measured in ONNX Runtime 1.31 and OpenVINO 2026.4 for
    convolutions and matrix products alike. Other architectures (ARM) do not, and return True.
    """
    return platform.machine().lower() not in ("x86_64", "amd64") or bool(VNNI & set(isa()))


def cores() -> list[int]:
    """One logical CPU for each physical core that this process may use, the fastest first.

    Affinity and a container's CPU quota are respected: threads beyond either only wait. Of cores
    that are equally fast the first count; boards often have their slow ones first.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(psutil.cpu_count(logical=False) or os.cpu_count() or 1))
    first_of_core: dict[tuple[int, ...], int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        first_of_core.setdefault(_core(cpu), cpu)
    return sorted(first_of_core.values(), key=lambda cpu: (-_speed(cpu), cpu))[: _quota()]


def siblings(cpus: Iterable[int]) -> list[int]:
    """All logical CPUs of the physical cores of some: what runs on one slows the others."""
    return sorted({sibling for cpu in cpus for sibling in _core(cpu)})


def _core(cpu: int) -> tuple[int, ...]:
    """The logical CPUs of a physical core, by one of them."""
    listed = TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    if not listed.exists():
        return (cpu,)
    found: list[int] = []
    for part in listed.read_text().split(","):  # 0,4 or 0-1
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _speed(cpu: int) -> int:
    """How fast a logical CPU is beside the others of its machine; 0 where Linux does not say."""
    for file in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        with suppress(OSError, ValueError):
            return int((TOPOLOGY / f"cpu{cpu}" / file).read_text())
    return 0


def _quota() -> int | None:
    """Whole CPUs that the container (cgroup v2) may use at a time; None is unlimited."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def thread_counts(requested: Sequence[int]) -> list[int]:
    """The distinct thread counts to measure; 0 is all cores, more than there are is cut down."""
    available = len(cores())
    for threads in requested:
        if threads > available:
            log.warning("%d threads asked for, %d cores usable: using these", threads, available)
    return sorted({min(threads or available, available) for threads in requested})


@contextmanager
def pinned(threads: int, *runtimes: "Runtime") -> Iterator[None]:
    """Keeps this process, with the threads it starts inside the block, on `threads` cores.

    Where the system has no affinity (macOS, Windows) only the runtimes' own thread counts hold.

    Args:
        threads: of each runtime, and how many cores.
        runtimes: what is going to run. They are told before the process is pinned: one may take
            the cores that it finds when it is first used for all there are.
    """
    with ExitStack() as stack:
        for runtime in runtimes:
            stack.enter_context(runtime.threads(threads))
        if hasattr(os, "sched_setaffinity"):
            stack.enter_context(_on(threads))
        yield


@contextmanager
def _on(threads: int) -> Iterator[None]:
    usual, before = os.sched_getaffinity(0), _affinities()
    chosen = cores()[:threads]
    try:
        for thread in before:
            _set_affinity(thread, chosen)
        yield
    finally:
        for thread in _threads():  # one that was started meanwhile is on the chosen cores, too
            _set_affinity(thread, before.get(thread, usual))


def _threads() -> list[int]:
    """The process's threads; a runtime's pool may have been started earlier, on all cores."""
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir()] if tasks.exists() else [0]


def _affinities() -> dict[int, set[int]]:
    """The CPUs that each of the process's threads may run on."""
    found = {}
    for thread in _threads():
        with suppress(ProcessLookupError):  # it may have ended meanwhile
            found[thread] = os.sched_getaffinity(thread)
    return found


def _set_affinity(thread: int, cpus: Iterable[int]) -> None:
    with suppress(ProcessLookupError):  # the same
        os.sched_setaffinity(thread, cpus)
