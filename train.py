"""Compresses an image classifier: `python train.py order=pqd backbone=wrn28_10`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pqd import schema, sweep
from pqd.objectives import values

schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | list[float] | None:
    """Checks and runs one configuration; Hydra calls it once per job of a sweep.

    Returns:
        `objectives` of the run, which sweepers of Hydra's that optimize look for: one figure, or
        a list of several; None if the run did not complete. None is of the test split.
    """
    with sweep.job(cfg):
        settings = schema.parse(cfg)
        from pqd import pipeline  # slow to import: a mistake in the configuration need not wait

        result = pipeline.run(settings, Path(HydraConfig.get().runtime.output_dir))
        found = values(result, settings.objectives)
        return found[0] if found and len(found) == 1 else found
    return None


if __name__ == "__main__":
    sweep.launch(main)
