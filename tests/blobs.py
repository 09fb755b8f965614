"""A small network that is trained on noisy blobs."""

import torch
from torch import nn
from torch.nn import functional as F

from pqd.config import TrainConfig
from pqd.data import Batch
from pqd.training import evaluate, fit

TIMES = ("seconds", "images_per_s", "eta_s")


class Blobs:
    """64 noisy images of 4 classes; the order and the noise depend on the epoch's seed alone."""

    def __init__(self, batch_size=16):
        generator = torch.Generator().manual_seed(7)
        self.labels = torch.arange(64) % 4
        centres = torch.randn(4, 3, 8, 8, generator=generator)
        self.images = centres[self.labels] + torch.randn(64, 3, 8, 8, generator=generator)
        self.batch_size = batch_size

    def __len__(self):
        return 64 // self.batch_size

    def epoch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(64, generator=generator).split(self.batch_size):
            noise = 0.5 * torch.randn(len(rows), 3, 8, 8, generator=generator)
            images = (self.images[rows] + noise).contiguous(memory_format=torch.channels_last)
            yield Batch(images, self.labels[rows], rows)

    def all(self):
        return zip(self.images.split(24), self.labels.split(24), strict=True)


def network(dropout=0.1):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16, 4),
    )


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def loss_fn(model, batch):
    logits = model(batch.images)
    loss = F.cross_entropy(logits.float(), batch.labels)
    return {"loss": loss, "task_loss": loss, "logits": logits}


def settings(**changes):
    return TrainConfig(**{"device": "cpu", "precision": "fp32", "compile": "false"} | changes)


def train(model, epochs=4, loss=loss_fn, config=None, lr=0.2, **kwargs):
    blobs = Blobs()
    kwargs = {"validate": lambda m: evaluate(m, blobs.all()), "seed": 0} | kwargs
    return fit(model, blobs, loss, settings=config or settings(), epochs=epochs, lr=lr, **kwargs)


def untimed(history):
    return [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in history]


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
