"""Numbers and conditions in words, the same in HTML, Markdown and LaTeX."""

from collections import defaultdict
from collections.abc import Iterable

from pqd.report.statistics import Estimate
from pqd.report.summary import Condition, Timing
from pqd.result import DENSE, FP32, INT8, PRUNED, Result
from pqd.runtimes import RUNTIMES

MODELS = {DENSE: "dense FP32", PRUNED: "pruned FP32", INT8: "INT8", FP32: "FP32"}
SIZES = {
    "fp32_checkpoint": "FP32 checkpoint",
    "fp32_onnx": "FP32 ONNX",
    "int8_onnx": "INT8 ONNX",
    "int8_onnx_zstd": "INT8 ONNX, zstd",
    "package": "package",
    "floor": "Shannon floor",
}
MISSING, NOISY, SLOWER = "–", "†", "‡"


def runtime(name: str) -> str:
    """The runtime's proper name."""
    return RUNTIMES[name].title if name in RUNTIMES else name


def model(name: str) -> str:
    """The measured model in words."""
    return MODELS.get(name, name)


def setup(condition: Condition) -> str:
    """Machine, threads and batch size, without the runtime."""
    return f"{condition.machine}, {threads(condition)}, batch {condition.batch_size}"


def threads(condition: Condition) -> str:
    """`1 thread`, `2 threads`, `all threads`."""
    if condition.threads == 0:
        return "all threads"
    return count(condition.threads, "thread")


def bytes_(value: Estimate | float | None) -> str:
    """Bytes, or their mean, in KiB or MiB, three significant digits."""
    if value is None:
        return MISSING
    value = value.mean if isinstance(value, Estimate) else value
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:.0f} B"


def cost(condition: Condition | None, value: float) -> str:
    """What a frontier's axis holds: a latency in its condition, or bytes."""
    return bytes_(value) if condition is None else f"{significant(value)} ms"


def significant(value: float) -> str:
    """Three significant digits and no exponent."""
    if value <= 0:
        return "0"
    decimals = 2 - int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, min(decimals, 6))}f}"


def ms(e: Estimate | None) -> str:
    """A latency in ms."""
    return MISSING if e is None else significant(e.mean)


def latency(t: Timing | None) -> str:
    """A median latency in ms, marked where a measurement was noisy."""
    return MISSING if t is None else ms(t.p50) + marks(t.noisy, None)


def speed(t: Timing | None) -> str:
    """The speed against dense, marked where a measurement was noisy or slower than dense."""
    if t is None or t.speedup is None:
        return MISSING
    return times(t.speedup.mean) + marks(t.noisy, t.slower)


def against_dense(t: Timing) -> str:
    """`2.45× as fast as dense FP32`, or slower; nothing where that was not measured."""
    return "" if t.speedup is None else as_fast(t.speedup.mean) + marks(t.noisy, t.slower)


def as_fast(speedup: float) -> str:
    """`2.45× as fast as dense FP32`, or slower."""
    slower = times(1 / speedup)
    as_fast = speedup >= 1 or slower == times(1)
    return f"{f'{times(speedup)} as fast as' if as_fast else f'{slower} slower than'} dense FP32"


def marks(noisy: float, slower: float | None) -> str:
    """The marks of a figure that was noisy, and of one slower than dense."""
    return (NOISY if noisy else "") + (SLOWER if slower else "")


def times(value: float | None) -> str:
    """A factor, e.g. `2.45×`."""
    return MISSING if value is None else f"{significant(value)}×"


def mean(e: Estimate | None) -> str:
    """Two decimals of a mean."""
    return MISSING if e is None else f"{e.mean:.2f}".replace("-", "−")


def deviation(e: Estimate | None) -> str:
    """The sample deviation."""
    return MISSING if e is None or e.deviation is None else f"{e.deviation:.2f}"


def interval(e: Estimate | None) -> str:
    """`91.91 to 92.35`."""
    if e is None or e.low is None or e.high is None:
        return MISSING
    return f"{e.low:.2f} to {e.high:.2f}".replace("-", "−")


def seconds(value: float) -> str:
    """A duration in s, min or h."""
    if value < 120:
        return f"{significant(value)} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def counted(value: float | None) -> str:
    """A large number in thousands or millions, three significant digits, e.g. `41.2 M`."""
    if value is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """One decimal and the sign."""
    return f"{value:.1f} %"


def p(value: float | None) -> str:
    """A p-value, e.g. `0.031` or `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def signed(value: float) -> str:
    """Two decimals with a sign (a true minus); no sign for what rounds to zero."""
    text = f"{value:+.2f}".replace("-", "−")
    return text[1:] if text[1:] == "0.00" else text


def warnings(results: Iterable[Result]) -> list[str]:
    """What to know before trusting figures, each with the run or runs that it is about."""
    names: dict[str, list[str]] = defaultdict(list)
    for result in results:
        for line in result.warnings:
            names[line].append(result.name)
    return [
        f"{listed([of[0], *([count(len(of) - 1, 'other run')] if of[1:] else [])])}: {line}"
        for line, of in names.items()
    ]
