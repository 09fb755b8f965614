"""What a run shows while it works: a bar, or lines, per stage."""

import io
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINES_PER_STAGE = 20  # at most, where there is no terminal
PLAIN_WIDTH = 160  # columns of a table where there is no terminal to ask

log = logging.getLogger(__name__)  # what is shown; conf/config.yaml leads it to the job's log file


def make_console() -> Console:
    """A console on stdout; where that is no terminal it is wide enough for the tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def show(shown: RenderableType, console: Console | None = None) -> None:
    """Shows text, as it is, or a table: on a console (None is stdout) and in the job's log file."""
    copy = Console(file=io.StringIO(), highlight=False, width=PLAIN_WIDTH)
    for to in (console or make_console(), copy):
        to.print(shown, soft_wrap=isinstance(shown, str), crop=False, markup=False)
    assert isinstance(copy.file, io.StringIO)
    log.info("%s", copy.file.getvalue().rstrip())


def place(path: Path) -> str:
    """A path as one gives it to a shell: from the working directory where it is below that."""
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


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
