"""What a run shows while it works: a bar or lines per stage, and the tables at its end."""

import io
import json
import logging
from collections.abc import Iterable, Mapping
from statistics import fmean
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pqd.result import Final, Latency, Result
from pqd.stages import spell

LINES_PER_STAGE = 20  # at most, where there is no terminal
PLAIN_WIDTH = 160  # columns of a table where there is no terminal to ask
RUNS_SHOWN = 12  # in the table at the end of a sweep; of more it shows means
DASH = "-"

log = logging.getLogger(__name__)  # what is shown; conf/config.yaml leads it to the job's log file


def make_console() -> Console:
    """A console on stdout; where that is no terminal it is wide enough for the tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def show(shown: RenderableType, console: Console | None = None) -> None:
    """Shows text, as it is, or a table: on a console (None is stdout) and in the job's log file."""
    copy = Console(file=io.StringIO(), highlight=False, width=PLAIN_WIDTH)
    for to in (console or make_console(), copy):
        to.print(shown, soft_wrap=isinstance(shown, str), markup=False)
    assert isinstance(copy.file, io.StringIO)
    log.info("%s", copy.file.getvalue().rstrip())


class StageProgress:
    """Shows one stage's training: a bar on a terminal, else a line for (some of) the epochs.

    Use as a context manager around `pqd.training.fit`, with `step` in its `before_step` and
    `epoch` as its `on_epoch`.

    Args:
        stage: its name.
        epochs: of the whole stage.
        steps: of the whole stage.
        console: where to show it; None is stdout.
    """

    def __init__(  # noqa: D107
        self, stage: str, epochs: int, steps: int, console: Console | None = None
    ) -> None:
        self.stage, self.epochs, self._steps = stage, epochs, steps
        self.console = console or make_console()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=10),
                TextColumn("{task.fields[epoch]}"),
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._task = self._bar.add_task(
                stage, total=steps, epoch=f"0/{epochs}", metrics="starting"
            )
        else:
            self._shown = _spread(epochs, LINES_PER_STAGE)

    def __enter__(self) -> "StageProgress":
        """Starts the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the bar; its last state stays on the screen."""
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Moves the bar to `step`, the index of the step about to start."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Shows an epoch's metrics, as `fit` gives them to `on_epoch`."""
        epoch = int(metrics["epoch"])
        values = [f"loss {metrics['loss']:.4f}"]
        if "validation_accuracy" in metrics:
            values.append(f"validation {metrics['validation_accuracy']:.2f} %")
        else:
            values.append(f"train {metrics['train_accuracy']:.2f} %")
        values.append(f"{metrics['images_per_s']:,.0f} images/s")
        text = "  ".join(values)
        if self._bar:
            done = self._steps * epoch // self.epochs
            counter = f"{epoch}/{self.epochs}"
            self._bar.update(self._task, completed=done, epoch=counter, metrics=text)
        elif epoch in self._shown:
            left = f"{duration(metrics['eta_s'])} left" if epoch < self.epochs else "done"
            counter = f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}"
            line = f"{self.stage:<8}  {counter}  {text}  {left}"
            show(line, self.console)


def _spread(epochs: int, lines: int) -> set[int]:
    """At most `lines` epochs, evenly spread, among them the first and the last."""
    if epochs <= lines:
        return set(range(1, epochs + 1))
    return {1 + round(i * (epochs - 1) / (lines - 1)) for i in range(lines)}


def duration(seconds: float) -> str:
    """A time in seconds as 1.2s, 59s, 3m 04s or 2h 05m."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h {minutes % 60:02}m"


def stage_table(result: Result) -> Group:
    """The table at the end of a run, one row per stage, and a line on the exported model.

    Args:
        result: a run's, of any status.
    """
    table = Table(title=escape(result.name))
    table.add_column("stage")
    for heading in ("epochs", "loss", "validation %", "sparsity %", "time"):
        table.add_column(heading, justify="right")
    for stage in result.stages:
        table.add_row(
            stage.stage,
            str(stage.epochs),
            _number(stage.loss, "{:.4f}"),
            _number(stage.validation_accuracy, "{:.2f}"),
            _number(stage.sparsity, "{:.1f}", 100),
            "cached" if stage.cached else duration(stage.seconds),
        )
    return Group(table, Text(_summary(result)))


def _summary(result: Result) -> str:
    final = result.final
    if final is None:
        return f"{result.status}: {result.reason}"
    dense = final.sizes.get("fp32_onnx")
    parts = [
        f"{final.accuracy:.2f} % on the test split (dense {final.dense_accuracy:.2f} %)",
        f"{final.sparsity:.1%} zeros",
        f"{final.model_bytes / 1e6:.2f} MB (dense {_number(dense, '{:.2f}', 1e-6)} MB)",
    ]
    if row := final.deployed:
        speedup = _number(row.speedup, ", {:.2f}x", missing="")
        parts.append(f"{row.p50_ms:.3g} ms{speedup} ({_setting(row)})")
    else:
        parts.append("latency not measured")
    return "model.onnx: " + ", ".join(parts)


def comparison_table(results: Iterable[Result]) -> Table:
    """The table at the end of a sweep: one row per run, in the order given.

    Args:
        results: of each run, of any status.
    """
    results = list(results)
    rows = [result.final.deployed for result in results if result.final]
    settings = {_setting(row) for row in rows if row}
    many = len(results) > RUNS_SHOWN
    table = Table(
        title="model.onnx, means over seeds" if many else "model.onnx of every run",
        caption="; ".join(sorted(settings)) or None,
    )
    table.add_column("run", overflow="fold")
    table.add_column("order")
    headings = ("accuracy %", "vs dense", "zeros %", "MB", "package MB", "ms", "speed-up")
    for heading in (*["completed"] * many, *headings):
        table.add_column(heading, justify="right")
    for runs in _without_seeds(results) if many else [[result] for result in results]:
        name = runs[0].name.rpartition("_seed")[0] if many else ""
        names = (escape(name or runs[0].name), _order(runs[0]))
        finals = [run.final for run in runs if run.final]
        count = [f"{len(finals)} of {len(runs)}"] * many
        if finals:
            table.add_row(*names, *count, *_means(finals))
        else:
            table.add_row(*names, *count, runs[0].status, *[DASH] * (len(headings) - 1))
    return table


def _means(finals: list[Final]) -> list[str]:
    rows = [row for final in finals if (row := final.deployed)]
    return [
        _mean((final.accuracy for final in finals), "{:.2f}"),
        _mean((final.accuracy - final.dense_accuracy for final in finals), "{:+.2f}"),
        _mean((final.sparsity for final in finals), "{:.1f}", 100),
        _mean((final.model_bytes for final in finals), "{:.2f}", 1e-6),
        _mean((final.sizes.get("package") for final in finals), "{:.2f}", 1e-6),
        _mean((row.p50_ms for row in rows), "{:.3g}"),
        _mean((row.speedup for row in rows), "{:.2f}x"),
    ]


def _order(result: Result) -> str:
    """Its name; of a run that failed before its configuration was read, as it was given."""
    given = result.config.get("order")
    return spell(result.order) if result.order or not isinstance(given, dict) else given["name"]


def _without_seeds(results: list[Result]) -> list[list[Result]]:
    """The runs of each configuration, which differ in the seed alone."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        config = {key: value for key, value in result.config.items() if key != "seed"}
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(result)
    return list(groups.values())


def _mean(values: Iterable[float | None], form: str, scale: float = 1) -> str:
    given = [value for value in values if value is not None]
    return _number(fmean(given) if given else None, form, scale)


def _number(value: float | None, form: str, scale: float = 1, missing: str = DASH) -> str:
    return missing if value is None else form.format(value * scale)


def _setting(row: Latency) -> str:
    threads = "all cores" if row.threads == 0 else f"{row.threads} thread(s)"
    return f"{row.runtime} {row.version}, {threads}, batch {row.batch_size}"
