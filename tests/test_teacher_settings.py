"""What is given as a teacher: what is refused at once, and what of it counts in a key."""

import json

import pytest

from configs import config, settings
from pqd.config import BackboneConfig, DatasetConfig
from pqd.data import load_dataset
from pqd.errors import UserError
from pqd.identity import stage_keys
from pqd.networks import Blueprint, save_network
from pqd.stages import STAGES, teachers
from pqd.stages.teachers import ForeignTeacher


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"teacher": 3}, "distill.teacher must be a folder saved by pqd"),
            ({"teacher": ForeignTeacher("resnet8")}, "distill.teacher must .* have both"),
            ({"teacher": ForeignTeacher(image_size=3)}, "distill.teacher must .* have both"),
            ({"teachers": [3]}, r"distill.teachers\[0\] must be a folder"),
            ({"teachers": ["a", {"bakbone": "b"}]}, r"distill.teachers\[1\].*'bakbone' not in"),
            ({"teacher": "a", "teachers": ["b"]}, "give distill.teacher or distill.teachers"),
        ],
    )
    def test_what_is_no_teacher_is_refused_at_once(self, given, message):
        with pytest.raises(UserError, match=message):
            STAGES["distill"].check(config("d", distill=settings("distill", **given)))

    def test_content_counts_not_names(self, tmp_path):
        for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
            (tmp_path / name).write_text(text)

        def key(**distill):
            given = config("d", distill=settings("distill", **distill))
            return stage_keys(given, {"images": ""})["distill"]

        def foreign(name, **given):
            return {"backbone": "resnet8", "checkpoint": str(tmp_path / name)} | given

        a, b, c = (str(tmp_path / name) for name in "abc")
        assert key(teacher=a) == key(teacher=b) != key(teacher=c)
        assert key(teachers=[a, c]) == key(teachers=[b, c]) != key(teachers=[a, a])
        alike = [key(teacher=ForeignTeacher(**foreign(name))) for name in "ab"]
        assert alike[0] == alike[1] != key(teacher=ForeignTeacher(**foreign("a", image_size=9)))
        assert key(teachers=[foreign("a")]) == key(teachers=[foreign("b")])
        assert key(teachers=[foreign("a")]) != key(teachers=[foreign("c")])
        spelled_out = [foreign("a", image_size=None), foreign("a", image_size=9)]
        assert [key(teachers=[of]) == key(teachers=[foreign("a")]) for of in spelled_out] == [1, 0]
        assert len({key(), key(teacher=a), alike[0], key(teachers=[a])}) == 4

    @pytest.mark.parametrize(
        "recipe", [{}, {"blueprint": {"classes": 10}}, {"blueprint": 5}, {"blueprint": {"new": 1}}]
    )
    def test_a_recipe_from_elsewhere_is_one_line(self, tmp_path, recipe):
        (tmp_path / "model.safetensors").write_bytes(b"")
        (tmp_path / "recipe.json").write_text(json.dumps({"format": 2} | recipe))
        given = config("d", distill=settings("distill", teacher=str(tmp_path)))
        assert len(stage_keys(given, {"images": ""})) == 2
        with pytest.raises(UserError, match=r"recipe\.json describes no network that can be "):
            teachers.load(teachers.KEY, str(tmp_path), load_dataset(DatasetConfig("digits", "")))

    def test_so_does_what_of_the_recipe_decides_outputs(self, tmp_path):
        blueprint = Blueprint(BackboneConfig("resnet8", "resnet8"), 10, 1, 8, (0.5,), (0.2,))
        save_network(blueprint.build(), blueprint, tmp_path)
        weights = tmp_path / "model.safetensors"

        def keys():
            given = [
                {name: value}
                for path in (str(tmp_path), str(weights))
                for name, value in (("teacher", path), ("teachers", [path]))
            ]
            found = [config("d", distill=settings("distill", **options)) for options in given]
            return [stage_keys(one, {"images": ""})["distill"] for one in found]

        def write(**changed):
            recipe = json.loads((tmp_path / "recipe.json").read_text())
            recipe |= {name: new for name, new in changed.items() if name in recipe}
            recipe["blueprint"] |= {n: new for n, new in changed.items() if n not in recipe}
            (tmp_path / "recipe.json").write_text(json.dumps(recipe))

        seen = [keys()]
        for changed in (
            {"mean": [0.4]},
            {"std": [0.3]},
            {"image_size": 16},
            {"constraints": [{"constraint": "fake_quant", "code_max": 127}]},
        ):
            write(**changed)
            seen.append(keys())
        for same_setting in zip(*seen, strict=True):
            assert len(set(same_setting)) == len(seen)
        write(torch="0.0")  # is only told
        assert keys() == seen[-1]
        ours = config("none", baseline=settings("baseline", checkpoint=str(tmp_path)))
        before = stage_keys(ours, {"images": ""})
        write(mean=[0.1])  # a checkpoint is its weights
        assert stage_keys(ours, {"images": ""}) == before
