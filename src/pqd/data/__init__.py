"""Images as one uint8 tensor per split, and batches of them augmented on the device."""

from pqd.data.batches import Batch, TrainBatches, eval_batches, normalise
from pqd.data.dataset import Dataset, Split, load_dataset

__all__ = ["Batch", "Dataset", "Split", "TrainBatches", "eval_batches", "load_dataset", "normalise"]
