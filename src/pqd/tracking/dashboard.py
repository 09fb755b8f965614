"""`pqd dashboard ENTITY/PROJECT`: a W&B workspace over the runs that `pqd.tracking` writes."""

import warnings
from typing import Any

from pqd.errors import UserError, one_line
from pqd.report.style import COLOURS
from pqd.stages import STAGES

NAME = "pqd: orders"
GUIDE = """### Orders compared
Every point, bar and curve is the mean of one order over its runs; bars show the standard error,
curves the range. Runs of different networks or data sets must not be averaged: filter the runs
by the tag of one backbone and one data set (on the left) first. Order is the colour.
"""


def workspace(entity: str, project: str) -> Any:
    """Builds the workspace, a `wandb_workspaces.workspaces.Workspace`, without any network.

    Runs are grouped by order, each order in the colour that it has in the report. Sections:
    frontiers (accuracy against latency and against sizes), a bar per order with its interval, and
    the curves of all stages against the run's epochs and of each against its own.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own use of pydantic
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
            from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            "the dashboard needs wandb-workspaces: pip install wandb-workspaces"
        ) from error

    order = "order.name"
    colours: dict[object, object] = dict(COLOURS.items())

    def scatter(title: str, metric: str) -> Any:
        x, y = wr.SummaryMetric(f"final/{metric}"), wr.SummaryMetric("final/accuracy")
        return wr.ScatterPlot(title=title, x=x, y=y, log_x=True)

    def bars(title: str, metric: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[f"final/{metric}"],
            groupby=wr.Config(order),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_bars_to_show=20,
        )

    def curve(title: str, x: str, metrics: list[str]) -> Any:
        return wr.LinePlot(
            title=title,
            x=x,
            y=[*metrics],
            title_x="epoch",
            groupby=wr.Config(order),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=100,
        )

    frontiers = [
        scatter("Accuracy (%) against latency (median ms, fastest runtime)", "latency_ms_p50"),
        scatter("Accuracy (%) against package (bytes)", "package_bytes"),
        scatter("Accuracy (%) against INT8 ONNX (bytes)", "int8_onnx_bytes"),
    ]
    figures = [
        bars("Accuracy (%)", "accuracy"),
        bars("Latency (median ms, fastest runtime)", "latency_ms_p50"),
        bars("Speed, × dense FP32 in the same runtime", "speedup"),
        bars("Package (bytes)", "package_bytes"),
        bars("Sparsity (% zeros)", "sparsity_percent"),
        bars("Accuracy of the dense network (%)", "dense_accuracy"),
    ]
    metrics = {
        "validation accuracy (%)": "validation_accuracy",
        "train accuracy (%)": "train_accuracy",
        "loss": "loss",
    }
    over_all = [f"{stage}/validation_accuracy" for stage in STAGES]
    curves = [curve("validation accuracy (%) over all stages", "epoch", over_all)]
    curves += [
        curve(f"{stage}: {title}", f"{stage}/epoch", [f"{stage}/{metric}"])
        for stage in STAGES
        for title, metric in metrics.items()
    ]
    columns = (
        "accuracy",
        "dense_accuracy",
        "latency_ms_p50",
        "runtime",
        "speedup",
        "package_bytes",
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        auto_generate_panels=False,
        sections=[
            ws.Section("How to read this", [wr.MarkdownPanel(markdown=GUIDE)], is_open=True),
            ws.Section("Frontiers", frontiers, is_open=True),
            ws.Section("Orders", figures, is_open=True),
            ws.Section("Stages", curves, is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("JobType") == "compress"),
            groupby=[expr.Config(order)],
            group_colors=colours,
            pinned_columns=[f"summary:final/{column}" for column in columns],
        ),
    )


def create_dashboard(target: str) -> str:
    """Saves the workspace in a project and returns its URL.

    Args:
        target: `ENTITY/PROJECT`.

    Raises:
        UserError: the target has another form, there is no login, or W&B refuses.
    """
    entity, slash, project = target.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"dashboard {target!r}: ENTITY/PROJECT is expected, e.g. my-team/pqd")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise UserError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY")
    built = workspace(entity, project)
    try:
        return str(built.save().url)
    except Exception as error:
        line = f"W&B did not save the dashboard in {target}: {one_line(error)}"
        raise UserError(line) from error
