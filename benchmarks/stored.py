"""Images that stay in their file: memory that decoding and reading take, speed against memory.

python benchmarks/stored.py [--images 50000] [--size 224] [--folder DIR]

Makes a folder of JPEGs (few different ones, many links to them), decodes it as a run would, and
goes through all images once; prints the peak memory of the whole process, PyTorch included. Then
trains ResNet-8 on the same 2,000 images from the file and from memory, in turns, and prints the
ratio of their speeds: the median over turns, and over batches alone, without a network.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pqd import backbones, data
from pqd.config import AugmentConfig, BackboneConfig, DatasetConfig, TrainConfig
from pqd.data.stored import StoredImages
from pqd.training import make_optimizer, make_train_step

DIFFERENT, COMPARED, STEPS = 64, 2000, 4


def make_folder(root: Path, count: int, size: int) -> None:
    """Writes a data set of two classes; oblong images, a little larger than what is wanted."""
    random = np.random.RandomState(0)
    made = []
    root.mkdir()
    for i in range(DIFFERENT):
        small = random.randint(0, 256, (12, 16, 3)).astype(np.uint8)
        made.append(root / f"{i}.jpg")
        image = Image.fromarray(small).resize((size * 5 // 3, size * 5 // 4))
        image.save(made[-1], quality=90)
    for split, number in (("train", count), ("test", 2 * DIFFERENT)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
        for i in range(number):
            os.link(made[i % DIFFERENT], root / split / "ab"[i % 2] / f"{i:07}.jpg")


def peak() -> float:
    """The most memory that this process has taken so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train(dataset: data.Dataset, batch_size: int) -> float:
    """Images per second of a few training steps."""
    size, cpu = dataset.train.images.shape[1], torch.device("cpu")
    torch.manual_seed(0)
    model = backbones.build(BackboneConfig("resnet8", "resnet8"), 2, 3, size)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(model, TrainConfig())

    def loss(network: torch.nn.Module, batch: data.Batch) -> dict[str, torch.Tensor]:
        logits = network(batch.images)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels)
        return {"loss": loss, "logits": logits}

    step = make_train_step(model, loss, cpu, "fp32", compiled=False)
    batches = data.TrainBatches(dataset, AugmentConfig(), batch_size, cpu).epoch(0)
    step(next(batches))  # warms up
    start = time.perf_counter()
    for _ in range(STEPS):
        step(next(batches))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return STEPS * batch_size / (time.perf_counter() - start)


def read(dataset: data.Dataset, batch_size: int) -> float:
    """Images per second of batches alone."""
    batches = data.TrainBatches(dataset, AugmentConfig(), batch_size, torch.device("cpu"))
    start = time.perf_counter()
    for count, _ in enumerate(batches.epoch(0), 1):
        if count == 4 * STEPS:
            break
    return count * batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7, help="0 looks at memory alone")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        make_folder(Path(temporary, "images"), args.images, args.size)
        settings = DatasetConfig("imagefolder", f"{temporary}/images", image_size=args.size)
        print(f"before: {peak():.2f} GiB")
        start = time.perf_counter()
        dataset = data.load_dataset(settings)
        seconds = time.perf_counter() - start
        where = "in their file" if isinstance(dataset.train.images, StoredImages) else "in memory"
        print(f"decoded in {seconds:.0f} s ({args.images / seconds:.0f} per s), {where}")
        print(f"peak after decoding: {peak():.2f} GiB")
        start = time.perf_counter()
        for split in (dataset.train, dataset.validation, dataset.test):
            for _ in data.eval_batches(split, dataset, 250, torch.device("cpu")):
                pass
        print(f"all images read in {time.perf_counter() - start:.0f} s")
        print(
            f"peak after reading: {peak():.2f} GiB of {args.images * args.size**2 * 3 / 2**30:.2f}"
        )
        if not args.turns:
            return
        if not isinstance(dataset.train.images, StoredImages):
            sys.exit("so few images are kept in memory; more --images stay in their file")
        few = dataset.train.take(torch.randperm(len(dataset.train))[:COMPARED])
        file, ram = replace(dataset, train=few), replace(dataset, train=few.loaded())
        for name, measure in (("training", train), ("batches alone", read)):
            turns = [
                (measure(file, args.batch_size), measure(ram, args.batch_size))
                for _ in range(args.turns)
            ]
            ratio = statistics.median(a / b for a, b in turns)
            speeds = [statistics.median(speed) for speed in zip(*turns, strict=True)]
            print(
                f"{name}: {speeds[0]:.0f} images/s from the file, {speeds[1]:.0f} from memory, "
                f"ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
