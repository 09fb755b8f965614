"""Everything a report says, computed once, for HTML, Markdown, LaTeX and figures alike."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

from pqd.identity import option_at
from pqd.report import cost, words
from pqd.report.bits import Bits, bits
from pqd.report.cases import FULL, Case, cases, distinct, sort_orders
from pqd.report.compare import Comparison, Mean, compare, verdict
from pqd.report.disturbance import disturbances
from pqd.report.frontier import Frontier, frontiers
from pqd.report.load import Loaded, Run
from pqd.report.settings import Setting, settings
from pqd.report.shapes import Shape, shapes
from pqd.report.style import Looks, looks, looks_of_settings, sort_stages
from pqd.report.subject import Subject, compared
from pqd.report.summary import Condition, Row, Timing, conditions, rows
from pqd.report.trials import Search, searches, split
from pqd.result import DEPLOYED, Result

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class CaseView:
    """One case."""

    case: Case
    subject: Subject
    family: int  # index into Report.families
    rows: list[Row]  # the dense baseline first
    comparisons: list[Comparison]
    curves: list[cost.Curve]
    costs: list[cost.Cost]
    shapes: list[Shape]  # of orders that removed channels
    bits: Bits | None

    @property
    def verdict(self) -> str:
        """What is shown of its orders, in a sentence."""
        return verdict(self.comparisons, self.means, self.subject)

    @property
    def uneven(self) -> bool:
        """Whether classes are so uneven that accuracies are also shown with them balanced."""
        return any(row.balanced for row in self.rows)

    @property
    def full(self) -> list[Row]:
        """The rows of the full orders; all orders where none is."""
        return [row for row in self.rows if len(row.stages) >= FULL] or self.rows[1:]

    @property
    def best(self) -> Row:
        """The full order with the highest mean accuracy."""
        return max(self.full, key=lambda row: row.accuracy.mean)

    @property
    def among(self) -> str:
        """Says among which orders `best` is; nothing where it is among all."""
        return " among full orders" if len(self.full) < len(self.rows) - 1 else ""

    @property
    def means(self) -> list[Mean]:
        """The mean accuracy of every order."""
        return [(row.order, self.case.label, row.accuracy) for row in self.rows[1:]]

    @property
    def notes(self) -> list[str]:
        """What the marks of latencies mean, where there are any."""
        timings = [t for row in self.rows for t in row.timings]
        deployed = [t for t in timings if t.model in DEPLOYED]  # what a speed-up is that of
        notes = []
        if noisy := sum(t.noisy for t in timings):
            what = f"a wide interval, or other work on the cores ({noisy} {_of(timings)})"
            notes.append(f"{words.NOISY} noisy in at least one run: {what}.")
        if slower := sum(t.slower for t in deployed):
            what = f"slower than dense in at least one run ({slower} {_of(deployed)})"
            notes.append(f"{words.SLOWER} {what}.")
        return notes

    @property
    def looked_at(self) -> list[Run]:
        """The first run of each order whose layers are known."""
        firsts = (self.case.of(order)[0] for order in self.case.orders())
        return [run for run in firsts if run.final.layers]

    def row(self, order: str) -> Row | None:
        """The row of an order, if it was run."""
        return next((row for row in self.rows if row.order == order), None)

    def against(self, order: str) -> float | None:
        """The mean difference of an order to the reference, points; None where not compared."""
        return next((c.difference.mean for c in self.comparisons if c.order == order), None)


@dataclass(frozen=True)
class Family:
    """Cases that differ in their axes alone: they share their frontiers."""

    label: str
    frontiers: list[Frontier]


@dataclass(frozen=True)
class Report:
    """Everything a report says."""

    loaded: Loaded
    subject: Subject
    runs: list[Run]  # completed and distinct
    unfinished: list[Result]  # those that no search has stopped
    repeats: int  # completed runs left out because a newer one repeats them
    cases: list[CaseView]
    families: list[Family]
    searches: list[Search]
    conditions: list[Condition]
    comparisons: list[Comparison]  # over all cases
    settings: list[Setting]  # compared with their defaults
    verdict: str  # over all cases
    saving: cost.Saving
    disturbances: dict[str, str]  # what ran beside the measurements of latency, by machine
    machines: list[dict[str, str]]  # where was measured
    training: dict[str, str]  # where was trained
    checks: dict[str, str]  # what accuracy is, and whether all ways to measure it agree

    def case_of(self, run: Run) -> str:
        """The label of the first case that a run belongs to; of a trial that of the search."""
        labels = (v.case.label for v in self.cases if any(r is run for r in v.case.runs))
        return next(labels, f"{run.backbone} · {run.dataset} · search")

    @property
    def orders(self) -> list[str]:
        """All orders of all cases, or settings in their place."""
        return sort_orders({run.order: len(run.stages) for run in self.runs})

    @cached_property
    def looks(self) -> Looks:
        """How these and the dense baseline, which comes first, are drawn."""
        return (looks_of_settings if self.subject.order else looks)(self.orders)

    @property
    def axes(self) -> list[str]:
        """What cases that share a frontier differ in: sparsity, speed-up."""
        keys = dict.fromkeys(key for v in self.cases for key in v.case.axes)
        return [option_at(key).axis or key for key in keys]

    @property
    def stages(self) -> list[str]:
        """Names of all stages of all runs, the baseline first."""
        return sort_stages({entry.stage for run in self.runs for entry in run.result.stages})

    @property
    def setups(self) -> list[str]:
        """Machine, threads and batch size of every condition, each once."""
        return list(dict.fromkeys(words.setup(c) for c in self.conditions))


def view(loaded: Loaded) -> Report:
    """Computes everything a report says."""
    runs, repeats = distinct(loaded.runs)
    tried, others = split(runs)
    subject, named = compared(others, alone=not tried)
    found = plain = cases(others)
    if subject.order:
        found = cases(named)
    swept = settings(plain)
    if len(found) == 1 and len(swept) == 1 and subject.order:
        swept = []  # the comparison of the only case says the same
    runs = [*tried, *named]
    where = conditions(runs)
    times = cost.training_times(runs)
    index = {label: i for i, label in enumerate(dict.fromkeys(case.family for case in found))}
    views = []
    for case in found:
        views.append(
            CaseView(
                case=case,
                subject=subject,
                family=index[case.family],
                rows=rows(case),
                comparisons=compare([case], subject),
                curves=cost.curves(case),
                costs=cost.costs(case, times),
                shapes=shapes(case),
                bits=bits(case),
            )
        )
    pooled = views[0].comparisons if len(views) == 1 else compare(found, subject)
    searched, unfinished = searches(tried, loaded.unfinished, where)
    said = verdict(pooled, [mean for v in views for mean in v.means], subject)
    return Report(
        loaded=loaded,
        subject=subject,
        runs=runs,
        unfinished=unfinished,
        repeats=repeats,
        cases=views,
        families=[_family(label, views, where) for label in index],
        searches=searched,
        conditions=where,
        comparisons=pooled,
        settings=swept,
        verdict=said if views or not tried else " ".join(s.verdict for s in searched),
        saving=cost.saving(runs, times),
        disturbances=disturbances(runs),
        machines=_machines(runs),
        training=_training(runs),
        checks=_checks(runs),
    )


def _family(label: str, views: list[CaseView], where: list[Condition]) -> Family:
    members = [v for v in views if v.case.family == label]
    return Family(label, frontiers([v.case for v in members], [v.rows for v in members], where))


def _of(timings: list[Timing]) -> str:
    return f"of {words.count(sum(t.p50.n for t in timings), 'measurement')} in all"


def _machines(runs: list[Run]) -> list[dict[str, str]]:
    """One entry per machine that measured latency: what it is and what it ran."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for run in runs:
        for m in run.measurements:
            where = m.provenance
            entry = found.setdefault(where.machine, defaultdict(Counter))
            entry["ISA"][", ".join(where.isa) or UNKNOWN] += 1
            entry["operating system"][where.os or UNKNOWN] += 1
            for row in m.latency:
                entry["runtimes"][f"{words.runtime(row.runtime)} {row.version}".strip()] += 1
            if where.int8_peak_gops:
                entry["INT8 peak, GOP/s"][f"{where.int8_peak_gops:.0f}"] += 1
            entry["runs measured"]["all"] += 1
    table = []
    for machine, entry in sorted(found.items()):
        count = str(entry.pop("runs measured")["all"])
        cells = {key: _values(values) for key, values in entry.items()}
        table.append({"machine": machine, **cells, "runs measured": count})
    return table


def _training(runs: list[Run]) -> dict[str, str]:
    """Where and with what the networks were trained; several values where runs differ."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        p = run.result.provenance
        recorded = {"device": p.device, "precision": p.precision, "CPU": p.cpu}
        recorded |= {"Python": p.python, "commit": p.commit} | dict(sorted(p.versions.items()))
        for name, value in recorded.items():
            found[name][value or UNKNOWN] += 1
    starts = sorted({run.started[:16].replace("T", " ") for run in runs if run.started})
    table = {name: _values(values) for name, values in found.items()}
    if starts:
        table["started"] = " to ".join(dict.fromkeys((starts[0], starts[-1])))
    return table


def _checks(runs: list[Run]) -> dict[str, str]:
    table = {
        "test": "top-1 of model.onnx, the exported model, on the whole test split",
        "dense": "the same of dense.onnx, batch norm folded, FP32",
        "validation": "of the network in training, on images held out of the train split",
    }
    if agreements := [a for run in runs if (a := run.final.agreement) is not None]:
        table["export"] = (
            f"predicts the class that the trained network does for {min(agreements):.2f} % of test"
            f" images{'' if min(agreements) == 100 else ' or more'} in every run"
        )
    spreads = [
        max(values) - min(values)
        for run in runs
        if len(values := [a for m in run.measurements for a in m.accuracy_by_runtime.values()]) > 1
    ]
    if spreads:
        table["runtimes"] = f"at most {max(spreads):.2f} points apart in any run"
    return table


def _values(values: Counter[str], most: int = 3) -> str:
    """The values, the most frequent first, with their counts where there are several."""
    if len(values) == 1:
        return next(iter(values))
    shown = [f"{value} ({n}×)" for value, n in values.most_common(most)]
    return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")
