"""What a search chooses from, and what it goes by."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import report_runs
from pqd.errors import UserError
from pqd.objectives import OBJECTIVES, values
from pqd.search.space import Dimension, saves
from sweepers import dimensions


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("order=pqd,qpd", {"choices": ("pqd", "qpd")}),
        ("prune.sparsity=interval(0.3,0.9)", {"low": 0.3, "high": 0.9}),
        ("prune.lr=tag(log,interval(0.01,0.1))", {"low": 0.01, "high": 0.1, "log": True}),
        ("prune.macs=tag(costs,range(0.3,1.05,0.1))", {"low": 0.3, "high": 1, "step": 0.1}),
        ("quantize.weight_bits=tag(costs,range(4,8))", {"low": 4, "high": 7, "step": 1}),
        ("prune.sparsity=tag(saves,choice(0.5,0.9))", {"choices": ("0.5", "0.9")}),
    ],
)
def test_the_space_is_what_hydra_would_sweep(override, expected):
    (found,) = dimensions(override, "seed=0")
    key, _, given = override.partition("=")
    sign = ("saves" in given) - ("costs" in given)
    assert found == Dimension(key, found.given, sign=sign, **expected)
    if found.step:
        grid = OverridesParser.create().parse_override(override).sweep_iterator()
        assert found.high == pytest.approx(max(map(float, grid)))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=0", "a search has nothing to choose from; give it a range"),
        ("seed=range(3,3)", "seed=range(3,3) is empty"),
        ("prune.lr=tag(lgo,interval(1,2))", "tag lgo is unknown; log, saves, costs are not"),
        ("prune.lr=tag(saves,costs,interval(1,2))", "either saves or costs"),
        ("prune.lr=tag(log,interval(0,1))", "a logarithmic scale starts above 0"),
        ("prune.lr=interval(2,1)", "prune.lr=interval(2,1) ends before it begins"),
        ("order=tag(saves,choice(pqd,qpd))", "only numbers save or cost"),
    ],
)
def test_another_space_is_refused(override, line):
    with pytest.raises(UserError) as caught:
        dimensions(override)
    assert line in str(caught.value)


def test_values_are_spelled_as_short_as_they_are_worth():
    lr = Dimension("prune.lr", "", low=0.001, high=0.1, log=True)
    sparsity = Dimension("prune.sparsity", "", low=0.3, high=0.9, step=0.1)
    assert lr.spell(0.0123456) == "0.0123"
    assert sparsity.spell(0.6000000000000001) == "0.6"


def test_what_saves_at_least_as_much():
    space = dimensions("a=tag(saves,interval(0,1))", "b=tag(costs,range(2,9))", "c=interval(0,1)")
    params = {"a": 0.5, "b": 6, "c": 0.1}
    assert saves(space, params | {"c": 0.9}, params)
    assert saves(space, params | {"a": 0.6, "b": 4}, params)
    assert not saves(space, params | {"a": 0.6, "b": 7}, params)


def test_no_objective_is_measured_on_the_test_split():
    run = report_runs.result(accuracy=77.0)
    run.stages[-1].validation_accuracy = 81.0
    latency, size = run.final.deployed.p50_ms, run.final.sizes["package"]
    assert values(run, OBJECTIVES) == [81.0, latency, size]
    run.final.latency = []
    assert values(run, ["latency_ms"]) is None
    run.status = "stopped"
    assert values(run, ["validation_accuracy"]) is None
