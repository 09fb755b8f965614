"""Teachers from anywhere see the images that they were trained on, or are refused in a line."""

import json
import re
from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional as F

from configs import GRAY, config, settings
from pqd import data, training
from pqd.config import BackboneConfig
from pqd.errors import UserError
from pqd.networks import Blueprint, load_blueprint, save_network
from pqd.result import StageResult
from pqd.stages import STAGES, teachers
from pqd.stages.teachers import ForeignTeacher, Teacher
from pqd.trainer import Trainer

DISTILL, BASELINE = STAGES["distill"], STAGES["baseline"]


def trainer(size=None, **distill):
    """Of a run on digits, which are 8 x 8 pixels in gray."""
    return Trainer(
        config(
            "d",
            **GRAY | {"dataset": replace(GRAY["dataset"], image_size=size)},
            baseline=settings("baseline", epochs=4, lr=0.1),
            distill=settings("distill", epochs=1, **distill),
        )
    )


def trained(kind, run, folder, parent=None):
    folder.mkdir()
    return run.train(
        kind,
        parent,
        folder,
        baseline=parent,
        checkpoint=folder / "checkpoint",
        on_epoch=lambda metrics: None,
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A dense network for images of 16 x 16 pixels: its folder and its figures."""
    folder = tmp_path_factory.mktemp("large") / "net"
    return folder, trained(BASELINE, trainer(16), folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """As `large`, for 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("small") / "net"
    return folder, trained(BASELINE, trainer(), folder)


@pytest.fixture(scope="module")
def run():
    return trainer()


def stage(run, baseline=None, **distill):
    run.config = replace(run.config, distill=settings("distill", **distill))
    return run._stage(DISTILL, baseline)


def attached(run, **distill):
    found = stage(run, **distill)
    found.attach(run.blueprint.build())
    return found


class TestImageSize:
    def test_a_teacher_keeps_its_accuracy(self, run, large, caplog):
        caplog.set_level("INFO")
        folder, figures = large
        assert figures["validation_accuracy"] > 90
        found = attached(run, teacher=str(folder))
        # The student's images are the originals: made larger they are the teacher's own.
        assert found.teacher_accuracy == pytest.approx(figures["validation_accuracy"], abs=1)
        shown = f"distill.teacher={folder}: {found.teacher_accuracy:.2f} % of the validation split"
        assert shown in caplog.text
        assert "no better than chance" not in caplog.text
        unresized = run.validation_accuracy(found.teacher.network)
        assert unresized < found.teacher_accuracy - 20  # what was silently taught before

    def test_it_sees_what_it_was_trained_on(self, run, large):
        theirs = trainer(16).dataset
        teacher = attached(run, teacher=str(large[0])).teacher
        given = data.normalise(run.dataset.train.images[:64], run.dataset.mean, run.dataset.std)
        wanted = data.normalise(theirs.train.images[:64], theirs.mean, theirs.std)
        seen = []
        teacher.network.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        teacher(given)
        assert seen[0].shape == (64, 1, 16, 16)
        # Theirs were rounded to 8 bits after they were resized.
        assert (seen[0] - wanted).abs().max() < 0.5 / 255 / theirs.std[0] + 1e-3

    def test_a_smaller_image_is_made_with_antialiasing(self, run):
        class Sees(torch.nn.Module):
            def forward(self, x):
                return x

        x = torch.randn(2, 1, 8, 8)
        resized = Teacher(Sees(), run.dataset, 4)(x)
        assert torch.equal(resized, F.interpolate(x, (4, 4), mode="bilinear", antialias=True))

    def test_other_normalisation_is_made_up_for(self, run):
        class Sees(torch.nn.Module):
            def forward(self, x):
                return x

        pixels = run.dataset.train.images[:8]
        given = data.normalise(pixels, run.dataset.mean, run.dataset.std)
        made = Teacher(Sees(), run.dataset, 8, [0.5], [0.25])(given)
        assert torch.allclose(made, data.normalise(pixels, (0.5,), (0.25,)), atol=1e-5)
        same = Teacher(Sees(), run.dataset, 8, list(run.dataset.mean), list(run.dataset.std))
        assert same(given) is given

    def test_the_recipe_knows_the_images(self, large):
        theirs, images = trainer(16).dataset, load_blueprint(large[0])
        assert (images.image_size, images.mean, images.std) == (16, theirs.mean, theirs.std)

    def test_a_recipe_that_does_not(self, run, large, tmp_path):
        for name in ("model.safetensors", "recipe.json"):
            (tmp_path / name).write_bytes((large[0] / name).read_bytes())
        recipe = json.loads((tmp_path / "recipe.json").read_text())
        del recipe["blueprint"]["mean"], recipe["blueprint"]["std"]
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        teacher = attached(run, teacher=str(tmp_path)).teacher
        assert teacher.image_size == 16
        assert not teacher.renormalises


class TestStage:
    def test_the_own_dense_network_is_the_default(self, run, small, caplog):
        caplog.set_level("INFO")
        found = stage(run, small[0])
        found.attach(run.blueprint.build())
        assert found.teacher is None  # on trial it may not be there yet
        found.start(model := run.blueprint.build())
        assert found.finish(model) == {"teacher_accuracy": small[1]["validation_accuracy"]}
        assert "the dense network, the teacher: " in caplog.text

    def test_the_figures_of_the_stage_hold_the_accuracy(self, small, large, tmp_path):
        run = trainer(teacher=str(large[0]))
        found = StageResult("distill", "", **trained(DISTILL, run, tmp_path / "net", small[0]))
        teacher = attached(run, teacher=str(large[0])).teacher
        assert found.teacher_accuracy == run.validation_accuracy(teacher) > 90
        test = data.eval_batches(run.dataset.test, run.dataset, 256, run.device)
        assert found.teacher_test_accuracy == training.evaluate(teacher, test) > 90

    def test_logits_known_beforehand_are_the_teachers(self, large):
        run = trainer(teacher=str(large[0]), cache_logits=True)
        found = run._stage(DISTILL, None)
        found.attach(run.blueprint.build())
        found.start(run.blueprint.build())
        batch = next(run.batches.epoch(0))
        asked = found.teacher(batch.images)
        assert torch.allclose(found.known[batch.rows], asked, atol=1e-4)

    def test_several_are_averaged(self, run, large, small):
        paths = [str(folder) for folder, _ in (large, small)]
        one, two = (attached(run, teacher=path).teacher for path in paths)
        found = attached(run, teachers=paths)
        images = next(run.batches.epoch(0)).images
        assert torch.allclose(found.teacher(images), (one(images) + two(images)) / 2, atol=1e-5)
        assert found.teacher_accuracy == run.validation_accuracy(found.teacher)

    def test_a_teacher_at_chance_is_pointed_out(self, run, tmp_path, caplog):
        save_network(run.blueprint.build(), run.blueprint, tmp_path)
        attached(run, teacher=str(tmp_path))
        assert f"distill.teacher={tmp_path} is no better than chance" in caplog.text


class TestRefused:
    """In one line, and on trial, before anything is trained."""

    def refusal(self, **distill):
        """What is said of the stage."""
        run = trainer(**distill)
        with pytest.raises(UserError, match=r"^stage distill: ") as raised:
            run.rehearse([BASELINE, DISTILL])
        return str(raised.value).removeprefix("stage distill: ")

    def test_a_teacher_that_is_not_there(self, tmp_path):
        said = self.refusal(teacher=str(tmp_path / "none"))
        assert re.match(r"\S*/none/recipe.json cannot be read: No such file", said)

    def test_other_channels(self, tmp_path):
        rgb = Blueprint(BackboneConfig("resnet8", "resnet8"), 10, 3, 8)
        save_network(rgb.build(), rgb, tmp_path)
        message = r"distill.teacher=\S+ has 3 channels, dataset digits has 1 channels$"
        assert re.match(message, self.refusal(teacher=str(tmp_path)))
        listed = message.replace("teacher=", r"teachers\[0\]=")
        assert re.match(listed, self.refusal(teachers=[str(tmp_path)]))

    def test_other_classes(self, tmp_path):
        seven = Blueprint(BackboneConfig("resnet8", "resnet8"), 7, 1, 8)
        save_network(seven.build(), seven, tmp_path)
        message = r"distill.teacher=\S+ has 7 classes, dataset digits has 10 classes$"
        assert re.match(message, self.refusal(teacher=str(tmp_path)))

    def test_a_foreign_checkpoint_that_does_not_fit(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save(timm.create_model("test_resnet", in_chans=3, num_classes=10).state_dict(), path)
        teacher = ForeignTeacher("test_resnet", str(path))
        message = r"checkpoint \S+ does not fit the backbone: .*expected"
        assert re.match(message, self.refusal(teacher=teacher))

    def test_a_name_that_timm_does_not_know(self, tmp_path):
        teacher = ForeignTeacher("test_resnett", str(tmp_path / "w.pth"))
        message = r"distill.teacher.backbone=test_resnett is unknown to timm .*nearest: test_resnet"
        assert re.match(message, self.refusal(teacher=teacher))

    def test_normalisation_of_other_channels(self, tmp_path):
        teacher = ForeignTeacher("resnet8", str(tmp_path), mean=[0.5, 0.5, 0.5])
        message = r"distill.teacher.mean=.* must be 1 numbers, as channels$"
        assert re.match(message, self.refusal(teacher=teacher))

    def test_images_too_small_for_it(self, run, tmp_path):
        net = timm.create_model("test_vit", num_classes=10, in_chans=1)
        torch.save(net.state_dict(), tmp_path / "w.pth")
        teacher = ForeignTeacher("vgg11", str(tmp_path / "w.pth"), image_size=1)
        with pytest.raises(UserError) as raised:
            attached(run, teacher=teacher)
        assert len(str(raised.value).splitlines()) == 1


class TestForeign:
    @pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
    def test_of_timm_as_timm_says(self, run, tmp_path, name):
        """Traceable or not: a teacher is only run. Its images are those of timm's own weights."""
        net = timm.create_model(name, num_classes=10, in_chans=1).eval()
        torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth.tar")
        given = ForeignTeacher(name, str(tmp_path / "w.pth.tar"))
        teacher = attached(run, teacher=given).teacher
        size = net.pretrained_cfg["input_size"][-1]
        x = torch.randn(2, 1, 8, 8)
        resized = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        assert torch.allclose(teacher(x), net(resized), atol=1e-4)

    def test_of_timm_with_rgb(self, run, tmp_path):
        net = timm.create_model("test_resnet", num_classes=10).eval()
        torch.save(net.state_dict(), tmp_path / "w.pth")
        known = net.pretrained_cfg
        split = data.Split(torch.randint(256, (8, 16, 16, 3), dtype=torch.uint8), torch.arange(8))
        dataset = replace(run.dataset, train=split, mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.4))
        given = ForeignTeacher("test_resnet", str(tmp_path / "w.pth"), image_size=16)
        teacher = teachers.load(teachers.KEY, given, dataset)
        ours = data.normalise(split.images, dataset.mean, dataset.std)
        theirs = data.normalise(split.images, tuple(known["mean"]), tuple(known["std"]))
        assert torch.allclose(teacher(ours), net(theirs), atol=1e-4)

    def test_of_pqds_own_backbones(self, run, small, tmp_path):
        """A checkpoint of a backbone in pqd, trained elsewhere: it sees what the student sees."""
        given = ForeignTeacher("resnet8", str(small[0]))
        assert attached(run, teacher=given).teacher_accuracy == small[1]["validation_accuracy"]

    def test_among_several(self, run, small):
        mixed = [str(small[0]), {"backbone": "resnet8", "checkpoint": str(small[0])}]
        found = attached(run, teachers=mixed)
        assert found.teacher_accuracy == small[1]["validation_accuracy"]

    def test_alike_but_for_their_images_or_given_twice(self, run, small, large):
        """Names are for messages: the same checkpoint can be several teachers."""
        given = {"backbone": "resnet8", "checkpoint": str(small[0])}
        found = [given, given | {"image_size": 16}, given | {"mean": [0.1], "std": [0.2]}]
        images = next(run.batches.epoch(0)).images
        alone = [attached(run, teachers=[one]).teacher(images) for one in found]
        several = attached(run, teachers=found).teacher(images)
        assert torch.allclose(several, sum(alone) / 3, atol=1e-5)
        one, two = str(small[0]), str(large[0])
        alone = [attached(run, teacher=path).teacher(images) for path in (one, two)]
        weighed = attached(run, teachers=[one, one, two]).teacher(images)
        assert torch.allclose(weighed, (2 * alone[0] + alone[1]) / 3, atol=1e-5)
