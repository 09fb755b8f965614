"""Compresses an image classifier: `python train.py order=pqd backbone=wrn28_10`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pqd import config, sweep

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Composes, checks and runs one configuration; Hydra calls it once per job of a sweep."""
    with sweep.job(cfg):
        settings = config.parse(cfg)
        from pqd import pipeline  # slow to import: a mistake in the configuration need not wait

        pipeline.run(settings, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    sweep.launch(main)
