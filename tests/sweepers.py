"""Hydra's sweepers in this process, with launchers of a test's own."""

from types import SimpleNamespace

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import open_dict

from pqd import schema
from pqd.search.space import space


def sweeper(hydra, name, launcher, *overrides, **options):
    """A sweeper of `hydra_plugins`, of the demo."""
    # Hydra's scan for plugins executes their modules again.
    found = Plugins.instance().class_name_to_class[f"hydra_plugins.{name}"](**options)
    found.launcher = launcher
    given = ["experiment=demo", *overrides]
    found.config = hydra.compose_config("config", given, RunMode.MULTIRUN)
    found.hydra_context = SimpleNamespace(config_loader=hydra.config_loader)
    return found


def demo(order, *overrides):
    """The settings of a job of the demo; needs the fixture `hydra`."""
    return schema.parse(compose("config", ["experiment=demo", f"order.name={order}", *overrides]))


def settings_of(job):
    """The settings of a job, of whose configuration Hydra's own part is taken out."""
    with open_dict(job):
        del job["hydra"]
    return schema.parse(job)


def dimensions(*overrides):
    """What a search chooses from."""
    return space(OverridesParser.create().parse_overrides(list(overrides)))
