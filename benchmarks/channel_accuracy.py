"""Which channels to remove? Accuracy at the same MACs and epochs, in paired seeds.

    python benchmarks/channel_accuracy.py FOLDER       # a command that is stopped goes on
    python benchmarks/channel_accuracy.py FOLDER --train-limit 49000 --baseline 60 --prune 12

Four trainings a seed, as in pqd's own stages; the last three end with the same MACs:

    dense           the dense network, which the next two start from
    pqd             prune=channels, which removes channels in the first half of its epochs
    torch_pruning   Torch-Pruning's group-norm pruner at once, then as many epochs of fine-tuning
                    with the same learning rates and batches; without its sparse training
    width           all layers narrowed alike, new weights, trained for the epochs of both

Every finished training is a line of FOLDER/results.jsonl: top-1 accuracy in %, shares of the dense
network's MACs and parameters. The table in the end compares them in pairs of one seed, in points,
with Student's 95 % interval and the p of a sign-flip test. Channels are not rounded, as what is
asked is accuracy. Six seeds take about 70 minutes of one core with AVX512 and bf16.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pqd import data, files, schema
from pqd.backbones.init import init_he
from pqd.config import (
    BackboneConfig,
    CacheConfig,
    DatasetConfig,
    LoggerConfig,
    OrderConfig,
    TrainConfig,
)
from pqd.constraints import attach
from pqd.data import Batch
from pqd.graph.channels import channels
from pqd.networks import load_network
from pqd.pruning.channels import narrowed
from pqd.pruning.cost import Shapes, Units
from pqd.report.statistics import estimate, sign_flip
from pqd.stages import STAGES
from pqd.trainer import Trainer, stage_seed
from pqd.training import evaluate, fit

MIN_CHANNELS = 4


class Seed:
    """The trainings of one seed."""

    def __init__(self, args: argparse.Namespace, seed: int, folder: Path) -> None:
        """Loads the images; networks and checkpoints go to `folder`."""
        self.seed, self.folder = seed, folder
        self.dense_folder = folder / "dense"
        given = {
            "baseline": _settings("baseline", epochs=args.baseline, lr=args.baseline_lr),
            "prune": _settings(
                "prune",
                epochs=args.prune,
                lr=args.prune_lr,
                what="channels",
                sparsity=0.0,
                macs=args.macs,
                round_to=1,
                min_channels=MIN_CHANNELS,
            ),
        }
        self.config = schema.schema()(
            seed=seed,
            order=OrderConfig("p"),
            backbone=BackboneConfig(args.backbone, args.backbone),
            dataset=DatasetConfig(
                args.dataset, args.root, validation=0.02, train_limit=args.train_limit
            ),
            train=TrainConfig(batch_size=args.batch_size, compile="false"),
            logger=LoggerConfig("none"),
            cache=CacheConfig(False, ""),
            **given,
        )
        self.trainer = Trainer(self.config)
        shape = self.trainer.blueprint
        self.image = shape.channels, shape.image_size, shape.image_size

    def dense(self, macs: float) -> fx.GraphModule:
        """Trains the dense network."""
        return self._stage("baseline", None)

    def pqd(self, macs: float) -> fx.GraphModule:
        """Removes channels of the dense network while it trains on."""
        return self._stage("prune", self.dense_folder)

    def torch_pruning(self, macs: float) -> fx.GraphModule:
        """Removes channels of the dense network as Torch-Pruning does, then trains on."""
        import torch_pruning as tp

        model = load_network(self.dense_folder)
        most = macs * self.costs(model)["macs"]
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        pruner = tp.pruner.GroupNormPruner(
            model,
            torch.zeros(1, *self.image),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=400,
            ignored_layers=layers[-1:],
        )
        while self.costs(model)["macs"] > most:
            pruner.step()
        return self._fit(model, "prune", self.config.epochs("prune"))

    def width(self, macs: float) -> fx.GraphModule:
        """Trains a network whose layers are all narrowed by the same factor."""
        torch.manual_seed(stage_seed(self.seed, "baseline"))
        model = self.trainer.blueprint.build()
        found = channels(model, self.image)
        units = uniform(Shapes(model, found), macs)
        attach(model, narrowed(model, found.groups, units))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        init_he(model)
        return self._fit(model, "baseline", sum(map(self.config.epochs, ("baseline", "prune"))))

    def costs(self, model: fx.GraphModule) -> dict[str, float]:
        """Returns the multiply-accumulates and the parameters of a network."""
        shapes = Shapes(model, channels(model, self.image))
        return {name: getattr(shapes, name)(shapes.dense) for name in ("macs", "parameters")}

    def test_accuracy(self, model: fx.GraphModule) -> float:
        """Returns the accuracy on the test split, in %."""
        dataset, device = self.trainer.dataset, self.trainer.device
        return evaluate(model.to(device), data.eval_batches(dataset.test, dataset, 500, device))

    def _stage(self, name: str, parent: Path | None) -> fx.GraphModule:
        place = self.folder / ("dense" if name == "baseline" else name)
        place.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / f"{name}.checkpoint"
        self.trainer.train(
            STAGES[name],
            parent,
            place,
            baseline=parent,
            checkpoint=checkpoint,
            on_epoch=lambda metrics: None,
        )
        checkpoint.unlink()
        return load_network(place)

    def _fit(self, model: fx.GraphModule, stage: str, epochs: int) -> fx.GraphModule:
        checkpoint = self.folder / "peer.checkpoint"
        fit(
            model,
            self.trainer.batches,
            cross_entropy,
            settings=self.config.train,
            epochs=epochs,
            lr=self.config.of(stage).lr,
            seed=stage_seed(self.seed, stage),
            validate=None,
            checkpoint=checkpoint,
        )
        checkpoint.unlink()
        return model


ARMS: dict[str, Callable[[Seed, float], fx.GraphModule]] = {
    "dense": Seed.dense,
    "pqd": Seed.pqd,
    "torch_pruning": Seed.torch_pruning,
    "width": Seed.width,
}


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    logits = model(batch.images)
    return {"loss": F.cross_entropy(logits.float(), batch.labels), "logits": logits}


def uniform(shapes: Shapes, macs: float) -> Units:
    """Returns the shape of one factor for all layers that is nearest to a share of the MACs."""
    factors = torch.arange(0.05, 1.0, 0.005).tolist()
    candidates = [(shapes.dense * factor).round().clip(1).astype(int) for factor in factors]
    asked = macs * shapes.macs(shapes.dense)
    return min(candidates, key=lambda units: abs(shapes.macs(units) - asked))


def _settings(stage: str, **given: Any) -> Any:
    return STAGES[stage].settings_class()(**given)


def train(args: argparse.Namespace, lines: Path, console: Console) -> list[dict[str, Any]]:
    """Trains what is not yet in the file of results; returns all of its lines."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for number in range(args.seeds):
        done = {row["arm"]: row for row in rows if row["seed"] == number}
        if len(done) == len(ARMS):
            continue
        seed = Seed(args, number, args.folder / f"seed{number}")
        for arm in (arm for arm in ARMS if arm not in done):
            started = time.perf_counter()
            model = ARMS[arm](seed, done["pqd"]["macs"] if "pqd" in done else 1.0)
            costs = seed.costs(model.cpu())
            dense = done["dense"]["costs"] if "dense" in done else costs
            row = {
                "seed": number,
                "arm": arm,
                "accuracy": seed.test_accuracy(model),
                **{name: value / dense[name] for name, value in costs.items()},
                "costs": costs,
                "seconds": round(time.perf_counter() - started, 1),
            }
            done[arm] = row
            rows.append(row)
            with lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
            console.print(f"seed {number}, {arm}: {row['accuracy']:.2f} %, {row['seconds']} s")
    return rows


def table(rows: Iterable[dict[str, Any]]) -> Table:
    """Returns accuracies, and pqd's over each other's in pairs of a seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for row in rows:
        by_arm[row["arm"]][row["seed"]] = row
    found = Table("", "top-1, %", "MACs", "parameters", "pqd's gain", "95 %", "p")
    for arm, seeds in by_arm.items():
        pairs = sorted(seeds.keys() & by_arm["pqd"].keys())
        if not pairs:
            continue
        accuracy, macs, parameters = (
            sum(seeds[seed][name] for seed in pairs) / len(pairs)
            for name in ("accuracy", "macs", "parameters")
        )
        cells = [arm, f"{accuracy:.2f}", f"{macs:.3f}", f"{parameters:.3f}"]
        if arm != "pqd":
            gains = [by_arm["pqd"][s]["accuracy"] - seeds[s]["accuracy"] for s in pairs]
            gain = estimate(gains)
            assert gain is not None
            between = "" if gain.low is None else f"{gain.low:+.2f} to {gain.high:+.2f}"
            cells += [f"{gain.mean:+.2f}", between, f"{sign_flip(gains):.3f}"]
        found.add_row(*cells)
    found.caption = f"{len(by_arm['pqd'])} seeds; the gain is in points"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the results, and of what is under way")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--macs", type=float, default=0.5, help="share of the dense network's")
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--root", default=os.environ.get("PQD_DATA", "data"))
    parser.add_argument("--train-limit", type=int, default=16000, help="images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--baseline", type=int, default=8, help="epochs of the dense network")
    parser.add_argument("--baseline-lr", type=float, default=0.1)
    parser.add_argument("--prune", type=int, default=3, help="epochs of pruning and fine-tuning")
    parser.add_argument("--prune-lr", type=float, default=0.05)
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(args).items() if name not in RESUMABLE}
    settings, console = args.folder / "settings.json", Console()
    if settings.exists() and (before := files.read_json(settings)) != asked:
        parser.error(f"{args.folder} holds results of other settings, {before}; name another")
    files.write_json(settings, asked)
    console.print(table(train(args, args.folder / "results.jsonl", console)))


RESUMABLE = "folder", "seeds", "root"  # may differ when a command goes on

if __name__ == "__main__":
    main()
