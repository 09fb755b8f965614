"""Does a network that was trained without pqd keep its accuracy in it, and leave as INT8?

    python benchmarks/outside.py FOLDER [--epochs 8] [--arguments prune.epochs=1 ...]

Trains torchvision's ResNet-18 (ImageNet stem) on CIFAR-10 in a plain loop, with ImageNet's
normalisation, in FOLDER/resnet18.pth; of pqd it takes the reading of the images only. Then it gives
that file to `train.py`, and prints how many test images each has right: the loop, pqd's dense
network, and the INT8 file that it ends with. Needs PQD_DATA; ten minutes of one core with AVX512
and bf16 for the training outside, five for pqd's.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import pqd.backbones._torchvision  # noqa: F401, what torchvision needs to be imported
from pqd import data
from pqd.config import DatasetConfig

ROOT = Path(__file__).parent.parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE, LR = 64, 0.05
STAGES = ["prune.epochs=1", "quantize.epochs=1", "distill.epochs=1"]


def normalised(images: Tensor) -> Tensor:
    """Makes [B, 3, H, W] in float32 of bytes [B, H, W, 3]."""
    floats = images.permute(0, 3, 1, 2).float() / 255
    return (floats - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augmented(images: Tensor) -> Tensor:
    """Shifts a batch by up to four pixels, and flips half of it."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    top, left = torch.randint(9, (2,)).tolist()
    return functional.pad(images, (4, 4, 4, 4))[..., top : top + 32, left : left + 32]


def trained(train: data.Split, epochs: int) -> nn.Module:
    """Trains as anyone would."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(train.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(train.labels))
        for rows in order.split(BATCH_SIZE)[: steps // epochs]:
            images = augmented(normalised(train.images[rows]))
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(images), train.labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.inference_mode()
def right(model: nn.Module, test: data.Split) -> int:
    """Counts the test images of which the class is found, in float32."""
    parts = torch.arange(len(test.labels)).split(500)
    found = [model(normalised(test.images[rows])).argmax(1) == test.labels[rows] for rows in parts]
    return int(torch.cat(found).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=8, help="of the training outside")
    parser.add_argument("--arguments", nargs="+", default=STAGES, help="of train.py")
    args = parser.parse_args()
    dataset = data.load_dataset(
        DatasetConfig(name="cifar10", root=os.environ.get("PQD_DATA", "data"))
    )
    model = trained(dataset.train, args.epochs)
    args.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, run = args.folder / "resnet18.pth", args.folder / "run"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    outside = right(model, dataset.test)
    given = [
        *("backbone=resnet18_imagenet_stem", "dataset=cifar10", "order=pqd", "logger=none"),
        *(f"dataset.mean={list(MEAN)}", f"dataset.std={list(STD)}"),
        *(f"baseline.checkpoint={checkpoint.resolve()}", f"hydra.run.dir={run.resolve()}"),
        *(f"cache.dir={(args.folder / 'cache').resolve()}", *args.arguments),
    ]
    subprocess.run([sys.executable, "train.py", *given], cwd=ROOT, check=True)
    final = json.loads((run / "result.json").read_text())["final"]
    of = len(dataset.test.labels)
    print("| network | test images right |\n|---|---|")
    print(f"| PyTorch, outside | {outside} of {of} |")
    print(f"| pqd, dense | {round(final['dense_accuracy'] * of / 100)} of {of} |")
    name = f"pqd, INT8, {100 * final['sparsity']:.0f} % zeros"
    print(f"| {name} | {round(final['accuracy'] * of / 100)} of {of} |")
    print(f"INT8 agrees with the fake-quantized network: {final['agreement_by_runtime']} %")


if __name__ == "__main__":
    main()
