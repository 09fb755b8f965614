"""Kills a sweep at random moments, starts it again, and compares the end with a quiet sweep's.

    python tests/kill.py --kills 50
    python tests/kill.py --kills 50 -- hydra/launcher=joblib

Everything after `--` goes to train.py. SIGKILL goes to the whole process group. Whenever the sweep
gets to its end before the next kill, it is checked and a new one begins with an empty cache; when
the kills are used up, the last sweep is finished and checked.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import small_sweeps as sweeps


def storm(folder, reference, kills, longest, rng, arguments):
    """Kills sweeps `kills` times and checks each that ends.

    Args:
        folder: receives one folder per sweep.
        reference: the folder of a finished sweep with the same arguments.
        kills: how often to kill.
        longest: seconds from a start to its kill, at most.
        rng: a `random.Random`.
        arguments: of train.py.

    Returns:
        Per sweep, the kills it bore and the epochs it trained in excess.
    """
    left, borne = kills, []
    while left or not borne:
        place, done, ended = folder / str(len(borne)), 0, False
        while not ended:
            process = sweeps.start(place, *arguments)
            try:
                process.wait(rng.uniform(0, longest) if left else None)
                ended = True
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                left, done = left - 1, done + 1
        sweeps.finish(process, place)
        borne.append((done, check(place, reference, done)))
        print(f"sweep {len(borne)}: {done} kills, {borne[-1][1]} epochs repeated", flush=True)
    return borne


def check(place, reference, kills):
    """Compares a finished sweep with the undisturbed one; returns the epochs trained twice."""
    assert sweeps.figures(place / "sweep") == sweeps.figures(reference / "sweep")
    assert sweeps.damaged_files(place / "sweep") == []
    # One entry per key, and the same keys: a stage trained twice would have two.
    assert sweeps.entries(place / "cache") == sweeps.entries(reference / "cache")
    assert sweeps.leftovers(place) == []
    trained, needed = (
        sweeps.epochs_trained((p / "sweep.log").read_text()) for p in (place, reference)
    )
    assert trained <= needed + kills, "a stage did not go on from its last epoch"
    return trained - needed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("arguments", nargs="*", help="of train.py")
    given = parser.parse_args()
    arguments = [sweeps.SIX, *given.arguments]
    with tempfile.TemporaryDirectory(prefix="pqd-kill-") as folder:
        reference, start = Path(folder) / "reference", time.monotonic()
        sweeps.finish(sweeps.start(reference, *arguments), reference)
        took = time.monotonic() - start
        print(f"undisturbed: {took:.0f} s, {len(sweeps.entries(reference / 'cache'))} entries")
        rng = random.Random(given.seed)
        borne = storm(Path(folder), reference, given.kills, took / 3, rng, arguments)
    repeated = sum(epochs for _, epochs in borne)
    print(f"{given.kills} kills, {len(borne)} sweeps finished: no difference; {repeated=} epochs")


if __name__ == "__main__":
    main()
