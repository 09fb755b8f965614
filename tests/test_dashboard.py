"""The W&B workspace: its definition, built without a network, and what is said when it fails."""

import json
from types import SimpleNamespace

import pytest

from pqd.errors import UserError
from pqd.stages import STAGES
from pqd.tracking import dashboard
from pqd.tracking.records import final_figures
from report_runs import result

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.usefixtures("own_wandb")


def full_disk():
    raise OSError("no space left\non device.")


def test_dashboard_is_built_without_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = dashboard.workspace("team", "project")._to_model()
    spec = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    assert (spec["entity"], spec["project"]) == ("team", "project")
    section = spec["spec"]["section"]
    panels = [p for s in section["panelBankConfig"]["sections"] for p in s["panels"]]

    scatters = [p["config"] for p in panels if p["viewType"] == "Scatter Plot"]
    assert {(p["xAxis"], p["yAxis"]) for p in scatters} >= {
        ("summary:final/latency_ms_p50", "summary:final/accuracy"),
        ("summary:final/package_bytes", "summary:final/accuracy"),
    }
    bars = [p["config"] for p in panels if p["viewType"] == "Bar Chart"]
    assert {(p["groupBy"], p["groupAgg"], p["groupArea"]) for p in bars} == {
        ("order.value.name", "mean", "stderr")
    }
    known = set(final_figures(result().final))
    assert {metric for p in bars for metric in p["metrics"]} <= known
    assert {p["xAxis"].removeprefix("summary:") for p in scatters} <= known
    curves = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    whole, *curves = curves
    assert whole["xAxis"] == "epoch"
    assert whole["metrics"] == [f"{stage}/validation_accuracy" for stage in STAGES]
    assert {p["xAxis"] for p in curves} == {f"{stage}/epoch" for stage in STAGES}
    assert all(m.split("/")[0] == p["xAxis"].split("/")[0] for p in curves for m in p["metrics"])

    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "order.value.name"}]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("jobType", "compress")
    assert set(section["customRunColors"].values()) == set(dashboard.COLOURS.values())


@pytest.mark.parametrize("target", ["", "project", "team/", "/project", "team/project/run"])
def test_dashboard_of_another_form_is_refused(target):
    with pytest.raises(UserError, match="ENTITY/PROJECT is expected"):
        dashboard.create_dashboard(target)


def test_dashboard_needs_a_login():
    with pytest.raises(UserError, match="not logged in"):
        dashboard.create_dashboard("team/project")


def test_dashboard_that_is_not_saved_says_why(monkeypatch):
    saved = SimpleNamespace(save=full_disk)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(dashboard, "workspace", lambda *_: saved)
    with pytest.raises(UserError, match="did not save the dashboard in team/project: no space"):
        dashboard.create_dashboard("team/project")
