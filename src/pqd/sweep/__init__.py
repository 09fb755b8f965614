"""Around Hydra: one clear line for a user's mistake, and the folder and end of a sweep."""

from pqd.sweep.finish import RememberFolder, announce
from pqd.sweep.launch import job, launch, mistake

__all__ = ["RememberFolder", "announce", "job", "launch", "mistake"]
