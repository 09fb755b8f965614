"""How long training takes, said once, from its first steps."""

import io

import pytest
from rich.console import Console

from pqd import forecast
from pqd.forecast import Forecast


class Clock:
    """Time that passes by so many seconds with every step."""

    def __init__(self, seconds):
        self.seconds, self.now, self.waited = seconds, 0.0, 0

    def perf_counter(self):
        return self.now

    def wait(self):
        self.waited += 1


@pytest.fixture
def foretold(monkeypatch):
    """What is said of the steps from `first` on, each taking `seconds`, and after how many."""

    def run(seconds, *, epochs=300, steps=352, first=0, budget=1.0, until=352):
        clock, out = Clock(seconds), Console(file=io.StringIO(), width=40)
        monkeypatch.setattr(forecast, "time", clock)
        told = Forecast(epochs, steps, budget=budget, stages=4, wait=clock.wait, console=out)
        count = None
        for step in range(first, min(until, steps) + first):
            told.step(step)
            if count is None and out.file.getvalue():
                count = step - first
            clock.now += clock.seconds if step - first >= forecast.WARM_UP else 60
        told.epoch({"seconds": seconds * steps})
        told.epoch({"seconds": seconds * steps})
        return out.file.getvalue(), count, clock.waited

    return run


def test_the_first_steps_tell_how_long_all_epochs_take(foretold):
    assert foretold(0.01) == (
        "training takes about 17m 36s if all is as fast as these first steps: "
        "300 epochs of 352 steps\n",
        13,
        2,
    )


def test_a_long_training_on_a_cpu_names_the_budget(foretold):
    line, steps, _ = foretold(2.0)
    assert line == (
        "training takes about 58h 40m if all is as fast as these first steps: 300 epochs of 352 "
        "steps; budget=0.1 would take about 5h 52m\n"
    )
    assert steps == forecast.WARM_UP + 2  # slow steps: fewer of them are waited for
    assert "; budget=0.05 would take about 5h 52m" in foretold(2.0, budget=0.5)[0]
    # 10, 1, 1 and 1 epochs become one each.
    assert "; budget=0.1 would take about 46m 56s" in foretold(2.0, epochs=13)[0]
    assert "budget" not in foretold(2.0, budget=None)[0]


def test_epochs_that_an_earlier_process_trained_are_not_counted(foretold):
    assert foretold(0.01, epochs=10, first=704)[0].endswith(": 8 epochs of 352 steps\n")


def test_where_steps_are_few_the_first_epoch_tells(foretold):
    assert foretold(0.5, epochs=5, steps=4)[0] == (
        "training takes about 10s if all is as fast as this first epoch: 5 epochs of 4 steps\n"
    )


def test_nothing_is_said_where_the_first_epoch_is_the_last(foretold):
    assert foretold(0.5, epochs=1, steps=4)[0] == ""
