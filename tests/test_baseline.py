"""The baseline from a checkpoint: what it says of it, and when it trains."""

import pytest
import torch

from configs import GRAY, config, settings
from pqd.errors import UserError
from pqd.stages import STAGES
from pqd.trainer import Trainer


class TestBaseline:
    @pytest.fixture
    def context(self):
        """On digits, with a network of 3 x 8 x 8 images in gray as their channels."""
        return Trainer(config("none", **GRAY))

    def stage(self, trainer, **options):
        given = config("none", **GRAY, baseline=settings("baseline", **options))
        trainer.config = given
        return trainer._stage(STAGES["baseline"], None)

    def test_shows_the_accuracy_and_warns_at_chance(self, tmp_path, context, caplog):
        caplog.set_level("INFO")
        model = context.blueprint.build()
        torch.save(model.state_dict(), path := tmp_path / "w.pth")
        stage = self.stage(context, checkpoint=str(path))
        assert not stage.trains
        stage.attach(model)
        stage.start(model)
        accuracy = context.validation_accuracy(model)
        assert f"baseline.checkpoint={path}: {accuracy:.2f} % of the validation" in caplog.text
        assert f"baseline.checkpoint={path} is no better than chance" in caplog.text

    def test_a_new_head_is_trained(self, tmp_path, context):
        torch.save(context.blueprint.build().state_dict(), path := tmp_path / "w.pth")
        stage = self.stage(context, checkpoint=str(path), new_head=True)
        assert stage.trains

    def test_a_new_head_of_nothing_is_refused(self):
        given = config("none", baseline=settings("baseline", new_head=True))
        with pytest.raises(UserError, match=r"needs baseline.checkpoint=FILE"):
            STAGES["baseline"].check(given)

    def test_a_damaged_checkpoint_is_found_before_training(self, tmp_path, context):
        state = context.blueprint.build().state_dict()
        state["fc.bias"] = torch.full((10,), torch.nan)
        torch.save(state, path := tmp_path / "w.pth")
        options = {"checkpoint": str(path)}
        context.config = config("none", **GRAY, baseline=settings("baseline", **options))
        with pytest.raises(UserError, match=r"^stage baseline: .*fc.bias holds 10 values"):
            context.rehearse([STAGES["baseline"]])
