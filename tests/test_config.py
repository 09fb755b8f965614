"""Every file in conf/ composes, and what a user gets wrong is one clear line."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from hydra_plugins.pqd_waves import check_swept
from pqd import schema
from pqd.errors import UserError
from pqd.stages import spelled
from pqd.stages.teachers import ForeignTeacher
from pqd.sweep import mistake

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = [
    (group.relative_to(CONF).as_posix(), path.stem)
    for group in sorted(p for p in CONF.rglob("*") if p.is_dir() and p.name != "wandb")
    for path in sorted(group.glob("*.yaml"))
]
SIX = {"pqd", "pdq", "qpd", "qdp", "dpq", "dqp"}
LETTERS = {"p": "prune", "q": "quantize", "d": "distill"}

schema.register()


def parsed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return schema.parse(compose("config", list(overrides)))


def line_for(*overrides):
    with pytest.raises((HydraException, UserError)) as caught:
        parsed(*overrides)
    line = mistake(caught.value)
    assert line
    assert "\n" not in line
    return line


FOREIGN = ForeignTeacher("resnet8", "w.pth")


@pytest.mark.parametrize(
    ("text", "teacher"),
    [
        ("{}", ForeignTeacher()),
        ("{teacher: null}", None),
        ("{teacher: runs/a}", "runs/a"),
        ("{teacher: {backbone: resnet8, checkpoint: w.pth}}", FOREIGN),
    ],
)
def test_a_teacher_in_a_file(text, teacher, tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = f"# @package _global_\ndistill: {text}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(lines)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert parsed(search, "experiment=mine").distill.teacher == teacher
    assert parsed(search, "experiment=mine", "distill.teacher=b").distill.teacher == "b"


def test_a_teacher_on_the_command_line():
    given = "distill.teacher.backbone=resnet8", "distill.teacher.checkpoint=w.pth"
    assert parsed(*given).distill.teacher == FOREIGN
    assert line_for("+distill.teacher.name=x") == (
        "distill.teacher={'backbone': None, 'checkpoint': None, 'image_size': None, 'mean': None, "
        "'std': None, 'name': 'x'}: Key 'name' not in 'ForeignTeacher'"
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda v: v)
def test_every_option_composes(group, option):
    group, _, folder = group.partition("/")
    needed = {
        "timm": ["backbone.name=resnet10t"],
        "custom": ["backbone.builder=my.module.build", "backbone.name=mine"],
        "channels": ["prune.macs=0.5"],
        "channels_and_weights": ["prune.macs=0.5"],
    }
    extra = needed.get(option, [])
    name = f"{folder}/{option}" if folder else option
    if group == "hydra":
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"{group}/{name.replace('/', '=')}"], return_hydra_config=True)
        assert cfg.hydra.launcher
    else:
        assert parsed(f"{group}={name}", *extra)


@pytest.mark.parametrize("value", ["true", "false", "True", "auto"])
def test_compile_is_given_as_yaml_has_it(value):
    assert parsed(f"train.compile={value}").train.compile == value.lower()


def test_the_orders_are_exactly_the_permutations():
    assert {path.stem for path in (CONF / "order").glob("*.yaml")} == SIX
    partial = {"none", "p", "q", "d", "pq", "pd", "qp", "qd", "dp", "dq"}
    assert {path.stem for path in (CONF / "order/partial").glob("*.yaml")} == partial
    for name in SIX | partial:
        order = parsed(f"order={name if name in SIX else f'partial/{name}'}").order.name
        assert order == name
        stages = [stage.name for stage in spelled(order)]
        assert stages == ([] if name == "none" else [LETTERS[letter] for letter in name])


def test_the_defaults_are_the_papers_epochs():
    config = parsed()
    epochs = [config.epochs(name) for name in ("baseline", "prune", "quantize", "distill")]
    assert epochs == [200, 20, 40, 40]


def test_the_budget_scales_all_epochs():
    config = parsed("budget=0.1")
    epochs = [config.epochs(name) for name in ("baseline", "prune", "quantize", "distill")]
    assert epochs == [20, 2, 4, 4]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("order=pdp", "order=pdp is unknown (did you mean qpd?); choose from: dpq, dqp, "),
        ("backbone=resnet", "backbone=resnet is unknown"),
        ("dataset=cifar", "dataset=cifar is unknown"),
        ("order.name=pqs", "order.name=pqs: 's' is no stage; spell it from d (distill), p (prune)"),
        ("order.name=pp", "names a stage twice"),
        ("prune.sparsity=1.0", "prune.sparsity=1.0 is outside [0, 1)"),
        ("prune.sparsity=-0.1", "prune.sparsity=-0.1 is outside [0, 1)"),
        ("prune.sparsity=much", "Value 'much' of type 'str' could not be converted to Float"),
        ("quantize.weight_bits=9", "quantize.weight_bits=9 is outside [2, 8]"),
        ("prune.epochs=0", "prune.epochs=0 is too small; at least 1"),
        ("distill.epochs=-3", "distill.epochs=-3 is too small; at least 1"),
        ("baseline.lr=0", "baseline.lr=0.0 must be greater than 0"),
        ("train.precision=fp16", "choose from: auto, bf16, fp32"),
        ("runtime.names=[tensorrt]", "runtime.names=tensorrt is unknown"),
        ("dataset.validation=0", "dataset.validation=0.0 is outside (0, 1)"),
        ("dataset.resize=squeeze", "dataset.resize=squeeze is unknown"),
        ("dataset.mean=[123.7]", "dataset.mean=123.7 is outside [0, 1]"),
        ("dataset.std=[0]", "dataset.std=0.0 is outside (0, 1]"),
        ("dataset.std=wide", "dataset.std"),
        (
            "baseline.new_head=true",
            "baseline.new_head=true needs baseline.checkpoint=FILE to start",
        ),
        ("distill.cache_logits=true", "needs images that are the same in every epoch"),
    ],
)
def test_a_mistake_is_one_line(override, line):
    assert line in line_for(override)


@pytest.mark.parametrize("key", ["names", "threads", "batch_sizes"])
def test_a_budget_in_time_needs_a_place_where_it_is_measured(key):
    """Without one an empty list measures nothing, as may be wanted."""
    for budget in ("speedup=2.0", "latency_ms=1.0"):
        line = line_for("prune=channels", f"prune.{budget}", f"runtime.{key}=[]")
        assert line == f"runtime.{key}=[] is empty; prune.{budget} goes by its first entry"
    empty = parsed("prune=channels", "prune.macs=0.5", f"runtime.{key}=[]")
    assert getattr(empty.runtime, key) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("prune.sparsty=0.5", "prune.sparsty is no setting; did you mean prune.sparsity?"),
        ("+prune.sparsty=0.95", "prune.sparsty is no setting; did you mean prune.sparsity?"),
        ("++prune.sparsty=0.95", "prune.sparsty is no setting; did you mean prune.sparsity?"),
        ("+trian.lr=1", "trian.lr is no setting; did you mean "),
        ("oder=pqd", "oder is no setting; did you mean order?"),
        ("+dataset.augment={flp: true}", "dataset.augment.flp is no setting; did you mean "),
        ("++x=1", "x is no setting; the configuration has seed, budget, order, backbone, "),
        ("+order.xyz=1", "order.xyz is no setting; did you mean order.name?"),
        ("train.epochs.prune=3", "train.epochs.prune is now prune.epochs"),
        ("+train.epochs.prune=3", "train.epochs.prune is now prune.epochs"),
        ("+train.epochs={prune: 3}", "train.epochs.prune is now prune.epochs"),
        ("train.lr.baseline=3", "train.lr.baseline is now baseline.lr"),
        ("train.epochs=3", "train.epochs is now <stage>.epochs, each stage's own, e.g. prune.epo"),
        ("train.lr=3", "train.lr is now <stage>.lr, each stage's own, e.g. prune.lr"),
        (
            "order.stages=[prune]",
            "order.stages is now order.name, spelled from the stages' letters",
        ),
        ("quantize.reduce_range=true", "quantize.reduce_range is now quantize.weight_bits, e.g. "),
        ("model=resnet18", "model is now backbone"),
        ("tags=[a]", "tags is now logger.tags"),
        ("+stop_below.prun=80", "stop_below=prun is unknown (did you mean prune?); choose from: "),
        ("model.name=resnet18", "model.name is now backbone.name"),
    ],
)
def test_an_unknown_key_names_its_successor_or_the_nearest(override, line):
    told = line_for(override)
    assert told.startswith(line)
    assert "append" not in told


def test_so_it_does_in_a_file_of_the_users_own(tmp_path):
    old = {
        "train": {"epochs": {"prune": 3}},
        "order": {"stages": ["prune"]},
        "model": {"name": "x"},
    }
    lines = {
        "train": "train.epochs is now <stage>.epochs",
        "order": "order.stages is now order.name",
    }
    (tmp_path / "experiment").mkdir()
    for group, content in old.items():
        text = f"# @package _global_\n{json.dumps({group: content})}"
        (tmp_path / f"experiment/{group}.yaml").write_text(text)
        place = f"hydra.searchpath=[file://{tmp_path}]"
        told = line_for(place, f"experiment={group}")
        assert told.startswith(lines.get(group, "model is now backbone"))


def test_what_builders_take_is_open():
    given = parsed("+backbone.kwargs.drop_path_rate=0.1", "+backbone.kwargs.a={b: 1}")
    assert given.backbone.kwargs == {"drop_path_rate": 0.1, "a": {"b": 1}}


def test_a_value_of_another_type_names_the_key_alone():
    line = line_for("prune.sparsity=much")
    assert line.endswith(
        "Value 'much' of type 'str' could not be converted to Float (prune.sparsity)"
    )


def test_nan_is_no_sparsity():
    assert "prune.sparsity=nan" in line_for("prune.sparsity=nan")


class TestSwept:
    """A sweep without a job is an error."""

    @pytest.fixture
    def check(self):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parse = OverridesParser.create(loader).parse_overrides
            yield lambda *overrides: check_swept(parse(list(overrides)), loader)

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("order=glob(typo*)", "order=glob(typo*) is unknown; choose from: dpq, dqp, pdq"),
            ("oder=glob(*)", "config group=oder is unknown (did you mean order?); choose from: ba"),
            ("seed=glob(*)", "seed=glob(*): config group=seed is unknown; choose from: backbone, "),
            ("seed=range(0)", "seed=range(0) is empty, so there is no job to launch"),
        ],
    )
    def test_nothing_to_launch(self, check, override, line):
        with pytest.raises(UserError) as caught:
            check("prune.ramp=0.5", override)
        assert line in str(caught.value)

    def test_others_pass(self, check):
        check("order=glob(*)", "seed=1,2", "dataset=glob([c*,d*])", "prune.ramp=0.5")


def test_the_schema_is_no_option_of_a_group():
    """A schema in group `order` would be swept by `order=glob(*)`."""
    from hydra.core.config_store import ConfigStore

    assert [name for name in ConfigStore.instance().repo if name == "schema.yaml"] == [
        "schema.yaml"
    ]
    assert not {"order", "backbone", "dataset"} & set(ConfigStore.instance().repo)


def test_the_resolved_configuration_is_json():
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(parsed())))["order"]["name"] == "pqd"
