"""Whether anything else ran where and when latency was measured, as far as the records tell."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from pqd.report import words
from pqd.report.load import Run
from pqd.result import Bench


def disturbances(runs: Iterable[Run]) -> dict[str, str]:
    """What disturbed the latencies, in a sentence, by machine; without those that had quiet."""
    by_machine: dict[str, list[Bench]] = defaultdict(list)
    for run in runs:
        for measurement in run.measurements:
            if measurement.latency:
                by_machine[measurement.provenance.machine].append(measurement)
    found = {machine: _disturbance(all_) for machine, all_ in sorted(by_machine.items())}
    return {machine: text for machine, text in found.items() if text}


def _disturbance(measurements: list[Bench]) -> str:
    shares = [row.others_share for m in measurements for row in m.latency]
    watched = [share for share in shares if share is not None]
    parts = []
    if watched and max(watched) >= 0.005:
        parts.append(f"other work took up to {100 * max(watched):.0f} % of the cores meanwhile")
    if len(watched) < len(shares) and (most := _at_once(measurements)) > 1:
        parts.append(f"up to {words.count(most, 'run')} at once may have disturbed each other")
    return " and ".join(parts)


def _at_once(measurements: list[Bench]) -> int:
    """The most runs under way at once; one that starts as another ends is not beside it."""
    changes = []
    for m in measurements:
        try:
            start = datetime.fromisoformat(m.provenance.started).timestamp()
        except ValueError:
            continue  # not recorded
        end = start + (m.provenance.seconds or 0) - 1  # starts are cut to whole seconds
        if end > start:
            changes += [(start, 1), (end, -1)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
