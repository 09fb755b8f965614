"""Every option decides what it says, in cache keys, in the waves of a sweep and in reports."""

from dataclasses import fields, is_dataclass, replace

import pytest

import configs
from pqd import identity, options
from pqd.config import BASELINE, BackboneConfig, CacheConfig
from pqd.options import Decides, option_of
from pqd.stages import STAGES
from pqd.stages.losses import LOSSES
from pqd.sweep import waves

FACTS = {"images": "0123456789abcdef"}
OTHER = {
    "order.name": "qpd",
    "prune.scope": "layer",
    "prune.schedule": "oneshot",
    "dataset.on_corrupt": "skip",
    "dataset.resize": "pad",
    "train.precision": "fp32",
    "train.compile": "true",
    "runtime.names": ["openvino"],
    "target.names": ["openvino"],
    "logger.name": "wandb",
    "logger.mode": "offline",
    "cache.enabled": False,
}
SHARED = configs.config("pqd", cache=CacheConfig(True, "cache"))
ALL = {key: given for key, _, given in options.leaves(SHARED)}


def changed(settings, key, new=None):
    """A copy of a configuration with another value under a dotted key."""
    name, _, rest = key.partition(".")
    value = getattr(settings, name)
    if rest:
        return replace(settings, **{name: changed(value, rest, new)})
    return replace(settings, **{name: other(value) if new is None else new})


def other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.1
    if isinstance(value, dict):
        return value | {"more": 1}
    if isinstance(value, list):
        return [*value, 2]
    return f"{value or ''}-other"


@pytest.fixture
def _digests(monkeypatch):
    monkeypatch.setattr(identity, "content", lambda key, path: str(path))


def shared(key):
    """The configuration in which a setting counts: where its loss or quantizer is used."""
    if key == "quantize.step_lr":
        return changed(SHARED, "quantize.quantizer", "lsq")
    name = key.split(".")[1] if key.count(".") == 2 else ""
    return changed(SHARED, "distill.loss", name) if name in LOSSES else SHARED


def with_other(key):
    return changed(shared(key), key, OTHER.get(key))


@pytest.mark.usefixtures("_digests")
@pytest.mark.parametrize("key", ALL)
def test_keys_waves_and_reports_agree(key):
    usual, changed_config, decides = shared(key), with_other(key), ALL[key].decides
    stages = [identity.stage_keys(c, FACTS) for c in (usual, changed_config)]
    retrained = list(stages[0].values()) != list(stages[1].values())
    assert retrained == (decides in (Decides.OUTCOME, Decides.REPEAT))

    measured = [identity.figures_of(c) for c in (usual, changed_config)]
    assert (measured[0] != measured[1]) == (decides is Decides.FIGURES)

    wanted = [waves.wanted(c) for c in (usual, changed_config)]
    if key.startswith("cache."):  # another folder, or none that jobs share
        assert not set(wanted[0]) & set(wanted[1])
    else:
        assert (wanted[0] != wanted[1]) == (decides is not Decides.NOTHING)
        *made, figures = zip(*wanted, strict=True)
        if decides in (Decides.FILES, Decides.FIGURES):
            *trained, dense, artifact = (one == two for one, two in made)
            assert all(trained)
            assert dense == artifact == (decides is Decides.FIGURES)
            assert figures[0] != figures[1]

    # What a report knows of an option it knows from the same declaration.
    assert identity.option_at(key).decides is decides

    same_run = identity.run_hash(usual) == identity.run_hash(changed_config)
    assert same_run == (decides is Decides.NOTHING)


@pytest.mark.usefixtures("_digests")
@pytest.mark.parametrize("key", [key for key in ALL if identity.owner(key)])
def test_a_stages_setting_reaches_its_stage_and_those_after_it(key):
    stage = identity.owner(key)
    before, after = (identity.stage_keys(c, FACTS) for c in (shared(key), with_other(key)))
    order = list(before)
    same = [name for name in order if before[name] == after[name]]
    assert same == order[: order.index(stage)]


def test_the_pace_of_steps_does_not_count_where_none_are_learned():
    one, two = (changed(SHARED, "quantize.step_lr", value) for value in (1.0, 0.1))
    assert identity.stage_keys(one, FACTS) == identity.stage_keys(two, FACTS)


def test_a_field_counts_unless_it_says_otherwise():
    undeclared = [
        of.name
        for stage in STAGES.values()
        for of in fields(stage.settings_class())
        if not is_dataclass(of.type) and option_of(of).decides is not Decides.OUTCOME
    ]
    assert undeclared == []
    assert identity.option_at("prune.a_new_option").decides is Decides.OUTCOME
    assert identity.option_at("nothing.known").decides is Decides.OUTCOME


def test_epochs_that_a_budget_scales_to_the_same_share_their_stages():
    short = replace(SHARED, budget=0.5)
    halved = replace(
        SHARED,
        **{name: replace(SHARED.of(name), epochs=SHARED.epochs(name) // 2) for name in STAGES},
    )
    assert short.epochs(BASELINE) == 100
    assert identity.stage_keys(short, FACTS) == identity.stage_keys(halved, FACTS)
    assert replace(SHARED, budget=1e-6).epochs(BASELINE) == 1


def test_the_runs_own_teacher_is_one_however_it_is_spelled():
    spelled = [configs.settings("distill", **given) for given in ({}, {"teacher": None})]
    keys = [identity.stage_keys(configs.config("d", distill=given), FACTS) for given in spelled]
    assert keys[0] == keys[1]


def test_the_content_of_a_file_counts_not_its_name(tmp_path):
    def keys(name, text):
        (tmp_path / name).write_text(text)
        given = {"distill": configs.settings("distill", teacher=str(tmp_path / name))}
        return identity.stage_keys(configs.config("pd", **given), FACTS)

    assert keys("a", "one") == keys("b", "one")
    assert keys("a", "one")["distill"] != keys("c", "two")["distill"]
    assert keys("a", "one")["prune"] == keys("c", "two")["prune"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"checkpoint_path": "~/weights"},
        {"parts": {"stem": {"file": "~/weights"}}},
        {"parts": ["none", ["~/weights"]]},
    ],
)
def test_so_does_that_of_a_file_among_a_backbones_arguments(tmp_path, monkeypatch, kwargs):
    monkeypatch.setenv("HOME", str(tmp_path))

    def key(text):
        (tmp_path / "weights").write_text(text)
        given = BackboneConfig("timm", "resnet10t", {"drop_path_rate": 0.1} | kwargs)
        return identity.stage_keys(configs.config("none", backbone=given), FACTS)

    assert key("one") == key("one")
    assert key("one") != key("two")
