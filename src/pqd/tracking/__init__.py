"""What goes to Weights & Biases: a run per job, a summary per sweep, and a workspace."""

from pqd.tracking.jobs import log_sweep, start
from pqd.tracking.run import Tracker

__all__ = ["Tracker", "log_sweep", "start"]
