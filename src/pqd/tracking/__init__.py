"""What goes to Weights & Biases: a run per job, a summary per sweep, and a workspace."""

from pqd.tracking.run import Tracker, log_sweep, start

__all__ = ["Tracker", "log_sweep", "start"]
