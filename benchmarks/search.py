"""Compares a search with the grid of the six orders, at equal cost in images trained.

    python benchmarks/search.py --folder multirun_sweeps/search_against_grid
    python benchmarks/search.py --folder /tmp/try -- debug=fast dataset=digits

Runs experiment=search, then the six orders at one sparsity after the other until the grid has
trained at least as many images; both share nothing. Each side's frontier is chosen on the
validation split; the hypervolume is that of the chosen networks' accuracy on the test split against
package size and latency, as a share of the box from the dense network's cost and 10 points below
its accuracy. A killed command goes on when it is given again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import moocore
import numpy as np

from pqd import result
from pqd.objectives import OBJECTIVES, values
from pqd.report.frontier import MARGIN
from pqd.result import Result

TRAIN = Path(__file__).parents[1] / "train.py"
SPARSITIES = (0.8, 0.5, 0.9, 0.65, 0.95, 0.35, 0.725, 0.575)  # of the grid, one by one
ORDERS = "order=pqd,pdq,qpd,qdp,dpq,dqp"
NAMES = list(OBJECTIVES)


def sweep(folder: Path, cache: Path, arguments: list[str]) -> None:
    """Runs a sweep into a folder, unless it is there already: the cache knows."""
    places = [f"hydra.sweep.dir={folder}", f"cache.dir={cache}", "logger=none"]
    done = subprocess.run([sys.executable, TRAIN, "-m", *arguments, *places], check=False)
    if done.returncode:
        sys.exit(f"the sweep in {folder} did not complete; the same command goes on")


def results(folder: Path) -> list[Result]:
    """All runs below a folder, those that stopped early among them."""
    return [result.read(path.parent) for path in sorted(folder.rglob(result.FILE))]


def epochs(runs: list[Result]) -> int:
    """Epochs that were trained for the runs, each stage once: all are of the same images."""
    return sum({stage.key: stage.epochs for run in runs for stage in run.stages}.values())


def chosen(runs: list[Result]) -> list[Result]:
    """The runs that no other one dominates on the validation split."""
    complete = [run for run in runs if values(run, NAMES)]
    points = np.array([values(run, NAMES) for run in complete])
    up = [OBJECTIVES[name].maximise for name in NAMES]
    kept = moocore.is_nondominated(points, maximise=up, keep_weakly=True)
    return [run for run, keep in zip(complete, kept, strict=True) if keep]


def volume(runs: list[Result], costs: list[str], dense: Result) -> float:
    """Share, in %, of the box that the runs dominate with their accuracy on the test split.

    Args:
        runs: complete.
        costs: names of the objectives that count besides accuracy.
        dense: any run; the dense network's figures in it are the worst corner of the box.
    """
    assert dense.final is not None
    latency = next(row.p50_ms for row in dense.final.latency if row.model == result.DENSE)
    worst = {"package_bytes": float(dense.final.sizes["fp32_onnx"]), "latency_ms": latency}
    least = dense.final.dense_accuracy - MARGIN
    points = []
    for run in runs:
        found = dict(zip(NAMES, values(run, NAMES) or [], strict=True))
        assert run.final is not None
        shares = [found[name] / worst[name] for name in costs]
        points.append([(100 - run.final.accuracy) / (100 - least), *shares])
    return 100 * float(moocore.hypervolume(np.array(points), ref=[1.0] * (1 + len(costs))))


def affordable(runs: list[Result], most: int) -> list[Result]:
    """The first trials, in the order in which they began, that so many epochs pay for."""
    began = sorted(runs, key=lambda run: run.provenance.started)
    counts = [n for n in range(len(began) + 1) if epochs(began[:n]) <= most]
    return began[: counts[-1]]


def table(searched: list[Result], grid: list[Result]) -> str:
    """Returns what both sides cost and reached, in Markdown; a longer search is cut to the grid."""
    searched = affordable(searched, epochs(grid))
    lines = [
        "| | runs | epochs trained | chosen | hypervolume, % | of size, % | of latency, % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    dense, sides = chosen(searched)[0], (NAMES[1:], ["package_bytes"], ["latency_ms"])
    for name, runs in (("search", searched), ("grid of six orders", grid)):
        best = chosen(runs)
        shares = " | ".join(f"{volume(best, costs, dense):.2f}" for costs in sides)
        lines.append(f"| {name} | {len(runs)} | {epochs(runs)} | {len(best)} | {shares} |")
    undominated = set(map(id, chosen(searched + grid)))
    count = sum(id(run) in undominated for run in searched)
    lines += ["", f"{count} runs of the search are dominated by no run of the grid or the search."]
    return "\n".join(lines)


def main() -> None:
    """Runs both sides and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", help="of train.py, for both sides")
    given = parser.parse_args()
    folder: Path = given.folder.absolute()
    sweep(folder / "search", folder / "search_cache", ["experiment=search", *given.arguments])
    searched = results(folder / "search")
    grid: list[Result] = []
    # The grid prunes weights alone, with the default learning rates of the stages.
    waves = ["hydra/sweeper=waves", "~hydra.sweeper.n_trials", "hydra.sweeper.params=null"]
    of_search = ("hydra.sweeper.", "+hydra.sweeper.")
    common = [argument for argument in given.arguments if not argument.startswith(of_search)]
    for sparsity in SPARSITIES:
        if epochs(grid) >= epochs(searched):
            break
        place = folder / f"grid/{sparsity}"
        swept = [ORDERS, f"prune.sparsity={sparsity}", "prune=magnitude", "prune.macs=null"]
        sweep(place, folder / "grid_cache", ["experiment=search", *common, *waves, *swept])
        grid += results(place)
    print(f"\n{table(searched, grid)}")


if __name__ == "__main__":
    main()
