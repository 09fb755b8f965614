"""The losses of distillation against their equations, written out in NumPy in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs import config, settings, stage
from nets import Residual, images, traced
from pqd.constraints import attach
from pqd.constraints.mask import Masks, set_masks
from pqd.data import Batch
from pqd.errors import UserError
from pqd.identity import stage_keys
from pqd.schema import parse, schema
from pqd.stages.losses import LOSSES

T = 3.0
LABELS = torch.tensor([4, 0, 2, 2, 1, 3])


def logits(seed, scale=2.0):
    """[6, 5]."""
    return scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def loss_of(name, student, teacher, **options):
    found = LOSSES[name](settings("distill", loss=name, temperature=T, **options))
    return found(student, teacher, LABELS)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(teacher, student):
    return float((teacher * np.log(teacher / student)).sum())


def hinton(student, teacher):
    pairs = zip(softmax(teacher / T), softmax(student / T), strict=True)
    return T**2 * np.mean([kl(t, s) for t, s in pairs])


def standardized(student, teacher):
    def z(x):
        return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)

    return hinton(z(student), z(teacher))


def dkd(student, teacher, alpha=1.0, beta=8.0):
    found = []
    for s, t, label in zip(softmax(student / T), softmax(teacher / T), LABELS, strict=True):
        tckd = kl(*(np.array([p[label], 1 - p[label]]) for p in (t, s)))
        nckd = kl(*(np.delete(p, label) / (1 - p[label]) for p in (t, s)))
        found.append(alpha * tckd + beta * nckd)
    return T**2 * np.mean(found)


def dist(student, teacher, beta=2.0, gamma=2.0):
    s, t = softmax(student / T), softmax(teacher / T)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    return T**2 * (beta * inter + gamma * intra)


REFERENCES = {"hinton": hinton, "standardized": standardized, "dkd": dkd, "dist": dist}


class TestValues:
    @pytest.mark.parametrize("name", REFERENCES)
    @pytest.mark.parametrize("seed", [0, 1])
    def test_equals_the_equation(self, name, seed):
        student, teacher = logits(seed), logits(seed + 10)
        expected = REFERENCES[name](student.double().numpy(), teacher.double().numpy())
        assert loss_of(name, student, teacher).item() == pytest.approx(expected, rel=1e-6)

    def test_equals_the_equation_with_other_weights(self):
        student, teacher = logits(3), logits(4)
        arrays = student.double().numpy(), teacher.double().numpy()
        from pqd.stages.losses.dist import DistSettings
        from pqd.stages.losses.dkd import DkdSettings

        found = loss_of("dkd", student, teacher, dkd=DkdSettings(0.5, 3.0)).item()
        assert found == pytest.approx(dkd(*arrays, 0.5, 3.0), rel=1e-6)
        found = loss_of("dist", student, teacher, dist=DistSettings(0.5, 3.0)).item()
        assert found == pytest.approx(dist(*arrays, 0.5, 3.0), rel=1e-6)

    def test_hinton_is_what_it_was(self):
        student, teacher = logits(0), logits(1)
        old = T**2 * F.kl_div(
            F.log_softmax(student / T, dim=1),
            F.log_softmax(teacher / T, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        assert torch.equal(loss_of("hinton", student, teacher), old)

    def test_hinton_is_the_sum_of_the_decoupled_parts(self):
        """Eq. 6 of the DKD paper, with one weight for all images: 1 - p_t is that of one image."""
        student, teacher = logits(0)[:1], logits(1)[:1]
        labels = LABELS[:1]
        from pqd.stages.losses.dkd import DkdSettings

        rest = 1 - (teacher / T).softmax(1)[0, labels[0]].item()
        given = settings("distill", temperature=T, dkd=DkdSettings(1.0, rest))
        decoupled = LOSSES["dkd"](given)(student, teacher, labels).item()
        whole = LOSSES["hinton"](given)(student, teacher, labels).item()
        assert decoupled == pytest.approx(whole, rel=1e-6)

    @pytest.mark.parametrize("name", REFERENCES)
    def test_is_zero_towards_itself(self, name):
        assert loss_of(name, logits(0), logits(0)).item() == pytest.approx(0, abs=1e-5)

    def test_standardized_allows_another_scale(self):
        student = logits(0)
        assert loss_of("standardized", student, 3 * student + 1).item() < 1e-5

    @pytest.mark.parametrize("name", REFERENCES)
    def test_gradients_equal_finite_differences(self, name):
        student, teacher = logits(0).requires_grad_(), logits(1)
        loss_of(name, student, teacher).backward()
        step, at = 1e-4, student.detach().double().numpy()
        target = teacher.double().numpy()
        for row, column in ((0, 4), (1, 2), (5, 0)):
            shift = np.zeros_like(at)
            shift[row, column] = step
            above, below = (REFERENCES[name](at + sign * shift, target) for sign in (1, -1))
            expected = (above - below) / (2 * step)
            assert student.grad[row, column].item() == pytest.approx(expected, abs=2e-5)

    @pytest.mark.parametrize("name", REFERENCES)
    def test_extreme_and_constant_logits_stay_finite(self, name):
        sure = 1000 * F.one_hot(LABELS, 5).float()
        for student in (sure, torch.zeros(6, 5)):
            student = student.clone().requires_grad_()
            for teacher in (sure, -sure, torch.zeros(6, 5)):
                loss = loss_of(name, student, teacher)
                loss.backward()
                assert loss.isfinite()
                assert student.grad.isfinite().all()

    @pytest.mark.parametrize("name", REFERENCES)
    def test_bf16_logits_are_computed_with_in_float32(self, name):
        student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
        found = loss_of(name, student, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss_of(name, student.float(), teacher.float()))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("constraints", ["", "p", "q", "pq", "qp"])
def test_teaches_constrained_students(name, constraints):
    """Every weight that is trained gets a gradient, whatever the student has been through."""
    model, teacher = traced(Residual), traced(Residual, seed=5).eval()
    for constraint in constraints:
        if constraint == "q":
            stage("quantize", weight_bits=4).attach(model)
        else:
            attach(model, Masks(["conv1", "fc"]))
            set_masks(model, 0.5, "global")
    taught = stage("distill", loss=name)
    taught.teacher = teacher
    batch = Batch(images(8), torch.arange(8) % 4, torch.arange(8))
    parts = taught.loss(model.train(), batch)
    parts["loss"].backward()
    assert parts["kd_loss"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class TestSettings:
    def test_the_key_depends_on_the_settings_of_the_loss_in_use(self):
        def key(loss, **given):
            found = config("d", distill=settings("distill", loss=loss))
            for name, value in given.items():
                setattr(found.distill.dkd, name, value)
            return stage_keys(found)["distill"]

        assert key("hinton") == key("hinton", beta=2.0)
        assert key("dkd") != key("dkd", beta=2.0)
        assert len({key(name) for name in REFERENCES}) == 4

    @pytest.mark.parametrize("name", REFERENCES)
    def test_there_is_a_configuration_file(self, name):
        from pathlib import Path

        from omegaconf import OmegaConf

        file = Path(__file__).parents[1] / "conf" / "distill" / f"{name}.yaml"
        assert OmegaConf.load(file) == {"loss": name}

    def test_values_out_of_range_are_named(self):
        from omegaconf import OmegaConf

        given = OmegaConf.structured(schema())
        required = {
            "order": {"name": "d"},
            "backbone": {"builder": "resnet8", "name": "resnet8"},
            "dataset": {"name": "digits", "root": ""},
            "logger": {"name": "none"},
            "distill": {"dkd": {"beta": -1}},
        }
        with pytest.raises(UserError, match=r"distill.dkd.beta=-1.0 is too small"):
            parse(OmegaConf.merge(given, required))
