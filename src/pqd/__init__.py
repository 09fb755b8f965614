"""pqd: prune, quantize and distill image classifiers in any order."""

import os

__version__ = "0.1.0"

# The threads of OpenMP wait for one another some hundred times in a training step. GNU's library,
# which PyTorch's wheels for Linux hold, spins for 300,000 turns (7 ms) before it sleeps: beside
# other work, that is spent waiting for a thread that has lost its core. 1,000 turns (25 us) are
# about what an idle machine's threads wait. Read when PyTorch is imported; benchmarks/load.py.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
