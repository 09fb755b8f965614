"""From the last network of a run to what is deployed: files and figures, in the run's folder."""

import shutil
from dataclasses import replace
from pathlib import Path

from pqd import artifact, result
from pqd.artifact import Subject
from pqd.cache import Entry, file_digest, key_of
from pqd.config import Config
from pqd.data import Dataset
from pqd.identity import figures_of
from pqd.report.words import runtime
from pqd.result import Final, Result
from pqd.runtimes import available, get
from pqd.stages import NO_STAGES
from pqd.steps import Steps, figures


def deploy(
    config: Config,
    steps: Steps,
    dataset: Dataset,
    networks: tuple[Path, Entry],
    folder: Path,
    found: Result,
) -> Entry:
    """Makes and measures the artifact of a network, and copies it to the run.

    Args:
        config: of the run.
        steps: of the run.
        dataset: whose test split it is measured on.
        networks: the entries of the dense network (its folder) and of the last one.
        folder: of the run; receives the files.
        found: of the run; receives figures, files and warnings.

    Returns:
        The artifact's entry.

    Raises:
        UserError: what is deployed is not what was trained; the files are kept to find out why.
    """
    baseline, last = networks
    images = f"{len(dataset.test):,} images"
    here = available([*dict.fromkeys([*config.runtime.names, *config.target.names])])  # told once
    where = replace(config.runtime, names=[n for n in config.runtime.names if n in here])
    runtimes = ", ".join(map(runtime, where.names))
    targets = tuple(name for name in config.target.names if name in here)
    dense = Subject(baseline, dataset, config.backbone.name, NO_STAGES, config.export, targets)
    dense_entry = steps.entry(
        "dense",
        key_of({"dense": baseline.name} | dense.identity(())),
        lambda folder: artifact.make_dense(dense, folder),
        f"exporting {artifact.DENSE_MODEL} and testing it on {images}",
    )
    subject = replace(dense, folder=last.folder, order=config.order.name)
    parents = {"dense": dense_entry.key, "network": last.key}
    made = steps.entry(
        "artifact",
        key_of(parents | subject.identity(())),
        lambda folder: artifact.make(subject, dense_entry.folder, folder),
        f"exporting {artifact.MODEL}, packing it and testing it on {images}",
    )
    identity = subject.identity(where.names)
    try:
        measured = figures(
            steps.entry(
                "figures",
                key_of({"artifact": made.key} | identity | figures_of(config)),
                lambda _: artifact.figures(subject, dense_entry.folder, made.folder, where),
                f"testing and timing in {runtimes}, {where.min_seconds:g} s or more "
                "per model, number of threads and batch size",
            )
        )
    except artifact.Incomplete as error:  # not cached: the next run tries again
        found.warn(f"not everything could be measured: {error}")
        measured = error.figures
    facts = figures(dense_entry) | figures(made) | measured
    found.final = final = result.decode(Final, facts, str(made.folder))
    for path in artifact.shipped(dense_entry.folder, made.folder, targets):
        shutil.copyfile(path, folder / path.name)
        found.files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    for name in targets:
        if not get(name).file(made.folder / artifact.MODEL):
            found.warn(f"no file for {get(name).title}: its exporter refused the network")
    for warning in artifact.doubts(final, len(dataset.test), found.bits):
        found.warn(warning)
    return made
