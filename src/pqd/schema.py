"""The whole configuration: the settings of `pqd.config` and those of every registered stage.

The schema is registered at the root, not in a group: a schema registered in group `order` would
be swept by `order=glob(*)`.
"""

from dataclasses import field, fields, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pqd import keys, options
from pqd.config import BASELINE, Config
from pqd.errors import choices
from pqd.stages import STAGES, spelled


def schema() -> type[Config]:
    """Returns `Config` with one field for each registered stage, by its name."""
    kinds = [(stage.name, stage.settings_class()) for stage in STAGES.values()]
    added = [(name, kind, field(default_factory=kind)) for name, kind in kinds]
    return make_dataclass("Config", added, bases=(Config,))


def defaults() -> DictConfig:
    """Returns the configuration of defaults, to be merged with what is given.

    What may be of several types, such as a teacher, is no structure in it: OmegaConf merges
    nothing but another structure with one.
    """
    cfg = OmegaConf.structured(schema())
    for stage in STAGES.values():
        settings = cfg[stage.name]
        for of in fields(stage.settings_class()):
            value = settings[of.name]
            if of.type in (Any, "Any") and OmegaConf.is_dict(value):
                settings[of.name] = OmegaConf.to_container(value)
    return cfg


def register() -> None:
    """Registers the schema under the name `schema`, the first entry of `conf/config.yaml`."""
    ConfigStore.instance().store(name="schema", node=defaults())


def parse(cfg: DictConfig) -> Config:
    """Turns the composed configuration into checked dataclasses.

    Raises:
        UserError: there is no such setting, or a value is out of its range; the message names the
            key and what is accepted.
    """
    keys.check(cfg, schema())
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.train.compile = config.train.compile.lower()  # YAML's true arrives as "True"
    order = spelled(config.order.name)
    options.check(config)
    for name in config.stop_below:
        if name not in STAGES:
            raise choices("stop_below", name, STAGES)
    for stage in (STAGES[BASELINE], *order):
        stage.check(config)
    return config
