"""Channels and weights go in one stage, in each of the 16 orders and partial orders."""

import itertools

import onnx
import pytest
import torch
from onnx import numpy_helper

import configs
from configs import settings
from pqd import measure
from pqd.config import AugmentConfig, BackboneConfig, DatasetConfig, TrainConfig
from pqd.constraints import describe
from pqd.constraints.mask import sparsity
from pqd.data import eval_batches
from pqd.export.onnx_file import write_onnx
from pqd.networks import load_network
from pqd.stages import STAGES
from pqd.trainer import Trainer
from pqd.training import predict

ORDERS = ["".join(o) for n in range(4) for o in itertools.permutations("pqd", n)]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The networks of all 16 orders on a few digits, by order; each stage is trained once."""
    folder = tmp_path_factory.mktemp("orders")
    given = {
        "baseline": settings("baseline", epochs=2),
        "prune": settings(
            "prune", epochs=3, what="channels_and_weights", macs=0.5, sparsity=0.5, round_to=4,
            min_channels=4, updates=3,
        ),
        "quantize": settings("quantize", epochs=2, calibration_batches=2),
        "distill": settings("distill", epochs=1),
    }  # fmt: skip
    config = configs.config(
        "pqd",
        backbone=BackboneConfig("resnet8", "resnet8"),
        dataset=DatasetConfig("digits", "", train_limit=256, augment=AugmentConfig(1, False)),
        train=TrainConfig(batch_size=64, device="cpu", precision="fp32", compile="false"),
        **given,
    )
    trainer = Trainer(config)
    figures = {}

    def train(order):
        place = folder / (order or "none")
        place.mkdir()
        kind = {s.letter: s for s in STAGES.values()}[order[-1:]]
        figures[order] = trainer.train(
            kind,
            folder / (order[:-1] or "none") if order else None,
            place,
            baseline=folder / "none" if order else None,
            checkpoint=folder / "checkpoint",
            on_epoch=lambda metrics: None,
        )
        (folder / "checkpoint").unlink(missing_ok=True)

    for order in ORDERS:
        train(order)
    return trainer, folder, figures


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_ends_in_a_smaller_network(grown, order, tmp_path):
    trainer, folder, figures = grown
    network = load_network(folder / (order or "none"))
    if "p" in order:
        pruned = order[: order.index("p") + 1]
        after = load_network(folder / pruned)
        recipe = {part["constraint"]: part for part in describe(network)}
        expected = {part["constraint"]: part for part in describe(after)}
        assert recipe["channels"] == expected["channels"]
        state, then = network.state_dict(), after.state_dict()
        assert all(torch.equal(state[n], then[n]) for n in then if n.endswith(".mask"))
        shape = figures[pruned]["shape"]
        assert 0.4 < shape["macs"] <= 0.5
        assert sparsity(network) == pytest.approx(0.5, abs=1e-3)
    path = tmp_path / "model.onnx"
    write_onnx(network, path, (1, 8, 8), {})
    for tensor in onnx.load(path).graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim == 4 and "p" in order:
            assert weight.any(axis=(1, 2, 3)).all()
            assert weight.any(axis=(0, 2, 3)).all()
    data = trainer.dataset
    batches = list(eval_batches(data.test, data, 250, torch.device("cpu")))
    own = predict(network, batches).numpy()
    theirs = measure.predictions(path, (x for x, _ in batches), "onnxruntime")
    assert (own == theirs).mean() >= 0.995


def test_a_stage_that_is_stopped_goes_on_as_if_it_had_not_been(grown, tmp_path):
    trainer, folder, figures = grown

    def train(place, on_epoch):
        place.mkdir()
        return trainer.train(
            STAGES["prune"],
            folder / "none",
            place,
            baseline=folder / "none",
            checkpoint=tmp_path / "checkpoint",
            on_epoch=on_epoch,
        )

    def stop(metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop)
    found = train(tmp_path / "resumed", lambda metrics: None)
    assert found["shape"] == figures["p"]["shape"]
    state, expected = (load_network(place) for place in (tmp_path / "resumed", folder / "p"))
    assert describe(state) == describe(expected)
    other = expected.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.state_dict().items())
