"""Learned steps in training: taught, resumed, compiled, and kept in later stages."""

import copy
import json
from dataclasses import asdict

import torch

from configs import GRAY, config, fitted, settings, stage
from nets import Batches, Residual, images, quantized, traced
from pqd import training
from pqd.config import TrainConfig
from pqd.constraints import constraints, describe, rebuild
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.lsq import LearnedSteps, LearnedWeightFakeQuant
from pqd.constraints.parametrization import find
from pqd.data import eval_batches
from pqd.export.deploy import deployed
from pqd.networks import load_network
from pqd.scheme import Scheme
from pqd.stages import STAGES
from pqd.stages.quantize import calibrate
from pqd.trainer import Trainer

BATCHES = Batches(of=16, fixed=True)


def of_stage(epochs=2, **options):
    return stage("quantize", BATCHES, epochs=epochs, quantizer="lsq", **options)


class TestTraining:
    def test_steps_are_trained_and_not_decayed(self):
        model = quantized(LearnedSteps, 4)
        optimizer = training.make_optimizer(model, TrainConfig())
        decayed, others = (group["params"] for group in optimizer.param_groups)
        steps = [p for n, p in model.named_parameters() if n.endswith("step")]
        assert len(steps) == 3 + len(activation_fake_quants(model))
        assert {id(p) for p in steps} <= {id(p) for p in others}
        assert len(decayed) == 3

    def test_steps_learn_at_a_rate_of_their_own_in_later_stages_too(self):
        grads = []
        for rate in (1.0, 0.25):
            model, again = traced(Residual), traced(Residual)
            of_stage(step_lr=rate).attach(model)
            calibrate(model, [images()])
            rebuild(again, json.loads(json.dumps(describe(model))))
            again.load_state_dict(model.state_dict())
            again.train()(images()).square().sum().backward()
            grads.append({name: p.grad for name, p in again.named_parameters()})
        for name, usual in grads[0].items():
            if usual is not None:  # the step of the images has none
                factor = 0.25 if name.endswith("step") else 1
                torch.testing.assert_close(grads[1][name], factor * usual)

    def test_the_stage_calibrates_once(self):
        model, found = traced(Residual), of_stage(epochs=4)
        found.attach(model)
        fitted(model, found)
        first = traced(Residual)
        of_stage().attach(first)
        calibrate(first, (batch.images for batch in BATCHES.epoch(0)))
        learned, started = (
            {n: p.detach() for n, p in m.named_parameters() if n.endswith("step")}
            for m in (model, first)
        )
        moved = [not torch.equal(learned[name], started[name]) for name in started]
        assert sum(moved) == len(moved) - 1  # all but that of the images
        assert torch.equal(*(m["activation_quantizers.x.step"] for m in (learned, started)))
        ranges = [activation_fake_quants(m).values() for m in (model, first)]
        for one, other in zip(*ranges, strict=True):
            assert torch.equal(one.calibrated, other.calibrated)  # in the first epoch alone

    def test_a_resumed_stage_ends_alike(self, tmp_path):
        def run(epochs_until_stopped):
            model, found = traced(Residual), of_stage()
            found.attach(model)

            class Stopped(Exception):
                pass

            def stop(metrics):
                if metrics["epoch"] == epochs_until_stopped:
                    raise Stopped

            try:
                fitted(model, found, checkpoint=tmp_path / "checkpoint", on_epoch=stop)
            except Stopped:
                return None
            return model.state_dict()

        whole = run(None)
        (tmp_path / "checkpoint").unlink()
        assert run(1) is None
        resumed = run(None)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_compiles_to_the_same_step(self):
        model = quantized(LearnedSteps, 4).train()
        again = copy.deepcopy(model)
        compiled = torch.compile(again, backend="aot_eager")
        x = images(8)
        for network in (model, compiled):
            network(x).square().sum().backward()
        for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
            if name == "activation_quantizers.x.step":
                assert p.grad is q.grad is None
                continue
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5), name


def test_an_order_on_digits(tmp_path):
    """Dense, quantized, taught: later stages go on learning the steps, and what is saved agrees."""
    run = Trainer(
        config(
            "qd",
            **GRAY,
            baseline=settings("baseline", epochs=3),
            quantize=settings("quantize", epochs=2, weight_bits=4, quantizer="lsq"),
            distill=settings("distill", epochs=1, loss="dkd"),
        )
    )
    folders, figures = {None: None}, {}
    previous = None
    for name in ("baseline", "quantize", "distill"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        figures[name] = run.train(
            STAGES[name],
            folders[previous],
            folders[name],
            baseline=folders.get("baseline"),
            left=1,
            checkpoint=tmp_path / "checkpoint",
            on_epoch=lambda metrics: None,
        )
        (tmp_path / "checkpoint").unlink(missing_ok=True)
        previous = name
    assert figures["distill"]["teacher_accuracy"] == figures["baseline"]["validation_accuracy"]
    quantized, taught = (load_network(folders[name]) for name in ("quantize", "distill"))
    assert not torch.equal(
        *(find(m, LearnedWeightFakeQuant)["fc"].step for m in (quantized, taught))
    )
    split = run.dataset.validation
    batches = list(eval_batches(split, run.dataset, len(split), torch.device("cpu")))
    agreed = training.predict(taught, batches) == training.predict(deployed(taught), batches)
    assert agreed.float().mean() > 0.99
    assert run.validation_accuracy(taught) == figures["distill"]["validation_accuracy"] > 80


def test_the_setting_names_the_quantizer():
    assert settings("quantize").quantizer == "abs_max"
    model = traced(Residual)
    of_stage(weight_bits=3).attach(model)
    (constraint,) = constraints(model)
    assert constraint.name == "lsq"
    assert constraint.describe(model) == {"code_max": 3, "scheme": asdict(Scheme()), "pace": 1.0}
