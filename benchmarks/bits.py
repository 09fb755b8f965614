"""Do bits chosen for each layer beat the same bits everywhere? In pairs of a seed.

    python benchmarks/bits.py results/bits/runs    # or folders of sweeps of experiment=bits

A size that was asked for is compared with the smallest package of equal bits that is as large, mean
over seeds, and left out where there is none. The difference in accuracy on the test split comes
with Student's 95 % interval.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pqd.report import words
from pqd.report.load import Run, load
from pqd.report.statistics import Estimate, sure_estimate

HEAD = (
    "| quantizer | bits everywhere | package | accuracy, % | size asked, KiB | package "
    "| accuracy, % | difference, points | 95 % interval | pairs |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)
Seeds = dict[int, Run]


def table(runs: Iterable[Run]) -> str:
    """Returns the comparison of every size with equal bits, in Markdown."""
    equal: dict[tuple[str, int], Seeds] = defaultdict(dict)
    chosen: dict[tuple[str, float], Seeds] = defaultdict(dict)
    for run in runs:
        settings = run.result.config["quantize"]
        quantizer, kib = settings["quantizer"], settings["size_kib"]
        if kib is None:
            equal[quantizer, settings["weight_bits"]][run.seed] = run
        else:
            chosen[quantizer, kib][run.seed] = run
    lines = list(HEAD)
    for (quantizer, kib), with_size in sorted(chosen.items()):
        as_large = {
            bits: of
            for (name, bits), of in equal.items()
            if name == quantizer and _package(of).mean >= 1024 * kib
        }
        if not as_large:
            continue
        bits = min(as_large, key=lambda bits: _package(as_large[bits]).mean)
        without = as_large[bits]
        seeds = sorted(with_size.keys() & without.keys())
        gains = sure_estimate([with_size[s].accuracy - without[s].accuracy for s in seeds])
        cells = (
            quantizer,
            str(bits),
            *_row(without),
            f"{kib:g}",
            *_row(with_size),
            words.signed(gains.mean),
            words.interval(gains),
            str(gains.n),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _package(of: Seeds) -> Estimate:
    return sure_estimate([run.final.sizes["package"] for run in of.values()])


def _row(of: Seeds) -> tuple[str, str]:
    accuracy = sure_estimate([run.accuracy for run in of.values()])
    return words.bytes_(_package(of)), words.mean(accuracy)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    print(table(load(parser.parse_args().folders).runs), end="")


if __name__ == "__main__":
    main()
