"""What comes from outside is shown on the validation split before anything relies on it."""

import logging
import math

from torch import nn

from pqd import data, training
from pqd.stages.base import Context

log = logging.getLogger(__name__)


def accuracy(context: Context, network: nn.Module, split: data.Split) -> float:
    """Returns the accuracy in % of a network on the run's device, on one of the run's splits."""
    size = context.config.train.eval_batch_size
    batches = data.eval_batches(split, context.dataset, size, context.device)
    return training.evaluate(network, batches)


def examine(context: Context, network: nn.Module, name: str) -> float:
    """Logs the accuracy of a network on the validation split; warns if it may well be guessing.

    Args:
        context: of the run.
        network: maps its images [B, C, H, W] to logits [B, K]; moved to its device, left in
            evaluation mode.
        name: of the network, in messages.

    Returns:
        The accuracy in %.
    """
    split = context.dataset.validation
    right = accuracy(context, network.to(context.device), split)
    log.info("%s: %.2f %% of the validation split", name, right)
    # Always the most frequent class is right so often; three standard deviations above may be luck.
    share = int(split.labels.bincount().max()) / len(split)
    if right <= 100 * (share + 3 * math.sqrt(share * (1 - share) / len(split))):
        log.warning(
            "%s is no better than chance: is it the right network, for these classes in this "
            "order, and were its images normalised alike (mean %s, deviation %s)?",
            name,
            *(
                [round(value, 3) for value in of]
                for of in (context.dataset.mean, context.dataset.std)
            ),
        )
    return right
