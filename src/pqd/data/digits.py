"""The 1,797 scanned digits of 8x8 pixels that scikit-learn ships (E. Alpaydin, C. Kaynak)."""

import numpy as np
import torch

from pqd.config import DatasetConfig
from pqd.data.split import Source, Split, cut

TEST_SHARE = 0.25
TEST_SEED = 0  # fixed: every run is tested on the same images


def read(cfg: DatasetConfig) -> Source:
    """Reads the digits, uint8 [N, 8, 8, 1], and splits off a fixed stratified test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # 17 levels of gray, 0 to 16
    everything = Split(
        torch.from_numpy(pixels).unsqueeze(-1), torch.from_numpy(data.target.astype(np.int64))
    )
    test, train = cut(everything.labels, round(TEST_SHARE * len(everything)), TEST_SEED)
    classes = [str(name) for name in data.target_names]
    return Source(classes, everything.take(train), everything.take(test))
