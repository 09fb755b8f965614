"""Compresses an image classifier: `python train.py order=pqd backbone=wrn28_10`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pqd import schema, sweep

schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Checks and runs one configuration; Hydra calls it once per job of a sweep.

    Returns:
        The accuracy of the deployed network on the test split, in %, which sweepers of Hydra's
        that optimize look for; None if the run failed.
    """
    with sweep.job(cfg):
        settings = schema.parse(cfg)
        from pqd import pipeline  # slow to import: a mistake in the configuration need not wait

        final = pipeline.run(settings, Path(HydraConfig.get().runtime.output_dir)).final
        return final.accuracy if final else None
    return None


if __name__ == "__main__":
    sweep.launch(main)
