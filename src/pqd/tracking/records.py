"""What a run and a sweep leave in W&B: metrics, figures under stable names, artifacts, tables."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqd import options
from pqd.report.words import runtime
from pqd.result import DENSE, Allocation, Final, Result
from pqd.stages import STAGES, spell
from pqd.tracking.media import record_layers

if TYPE_CHECKING:
    import wandb

    from pqd.report.summary import Key
    from pqd.report.view import Report


COSTS = "macs", "parameters"


def record_epoch(run: "wandb.Run", stage: str, metrics: dict[str, float], before: int) -> None:
    """Logs an epoch as `stage/metric`, and as `epoch` its number over all stages."""
    run.log(_named(stage, metrics, before))


def last_epochs(run: "wandb.Run") -> dict[str, float]:
    """Returns the last epoch of each stage that a run which goes on online has already there."""
    if not run.resumed:
        return {}
    epochs = [key for key in run.summary.keys() if key.endswith("/epoch")]  # noqa: SIM118
    return {key.removesuffix("/epoch"): run.summary[key] for key in epochs}


def record_result(run: "wandb.Run", result: Result, logged: Callable[[str, float], bool]) -> None:
    """Writes the summary, and the epochs that are not logged yet.

    Args:
        run: an open run.
        result: of a run with any status.
        logged: whether an epoch of a stage was logged while it was trained. The others came from
            the cache or were trained by an earlier process.
    """
    before = 0
    for stage in result.stages:
        for metrics in stage.history:
            if not logged(stage.stage, metrics["epoch"]):
                record_epoch(run, stage.stage, metrics, before)
        if stage.history:  # else the summary would be of what was logged last, maybe earlier
            run.summary.update(_named(stage.stage, stage.history[-1], before))
        if stage.shape:  # shares of the dense network's that are left
            left = {f"{stage.stage}/{name}_left": stage.shape[name] for name in COSTS}
            run.summary.update(left)
        before += len(stage.history)
    if result.warnings:
        run.tags = (*(run.tags or ()), "warnings")
    run.config.update({"config_hash": result.config_hash})
    run.summary.update(
        {
            "status": result.status,
            "reason": result.reason or "",
            "warnings": result.warnings,
            "provenance": asdict(result.provenance),
            **(final_figures(result.final) if result.final else {}),
            **(_bit_figures(result.bits) if result.bits else {}),
        }
    )
    if result.status == "completed":  # of the last stage: what sweeps and searches go by
        run.summary.update({"final/validation_accuracy": result.stages[-1].validation_accuracy})
    if result.final and result.final.layers:
        record_layers(run, result.final.layers)


def _named(stage: str, metrics: dict[str, float], before: int) -> dict[str, float]:
    """An epoch's metrics by their names; the time left is of the moment, and not one of them."""
    named = {f"{stage}/{key}": value for key, value in metrics.items() if key != "eta_s"}
    return named | {"epoch": before + metrics["epoch"]}


def final_figures(final: Final) -> dict[str, float | str]:
    """Flattens the figures of a completed run to the summary's names, `final/...`.

    Latencies without a runtime in the name (ms) are those in the runtime that is fastest
    (`final/runtime`), with the first thread count and batch size measured: of the deployed model,
    and of the dense one in the same place (`final/dense_latency_ms_p50`).
    """
    figures: dict[str, float | str | None] = {
        name: value for name, value in vars(final).items() if isinstance(value, int | float)
    }
    figures["sparsity_percent"] = 100 * final.sparsity  # the unit of accuracies
    figures |= {f"{name}_bytes": size for name, size in final.sizes.items()}
    figures |= {f"accuracy/{name}": value for name, value in final.accuracy_by_runtime.items()}
    for row in final.latency:
        place = f"{row.runtime}_threads{row.threads}_batch{row.batch_size}"
        figures[f"latency_ms_p50/{row.model}_{place}"] = row.p50_ms
    if deployed := final.deployed:
        where = deployed.runtime, deployed.setting
        rows = [row for row in final.latency if (row.runtime, row.setting) == where]
        dense = [row.p50_ms for row in rows if row.model == DENSE]
        figures["dense_latency_ms_p50"] = next(iter(dense), None)
        figures["runtime"] = runtime(deployed.runtime)
        figures |= {f"latency_ms_{q}": getattr(deployed, f"{q}_ms") for q in ("p50", "p90", "p99")}
        figures["speedup"] = deployed.speedup
        figures |= _interval("latency_ms_p50", deployed.p50_interval_ms)
        figures |= _interval("speedup", deployed.speedup_interval)
        figures |= {"noisy": deployed.noisy, "slower_than_dense": deployed.slower_than_dense}
    return {f"final/{name}": value for name, value in figures.items() if value is not None}


def _interval(name: str, interval: list[float] | None) -> dict[str, float | str | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _bit_figures(bits: Allocation) -> dict[str, float]:
    """Names the bits of each layer `bits/LAYER`, and their mean over all weights."""
    by_layer = {f"bits/{name}": layer.bits for name, layer in bits.layers.items()}
    return {**by_layer, "final/mean_bits": bits.mean_bits}


def upload_model(run: "wandb.Run", result: Result, files: list[Path]) -> None:
    """Logs the files of a completed run as a version of the artifact `backbone-dataset`.

    The versions are told apart by alias: the order's name, `order-seedN`, `latest`.
    """
    config, order = result.config, spell(result.order)
    assert result.final is not None
    _upload(
        run,
        name=f"{config['backbone']['name']}-{config['dataset']['name']}",
        kind="model",
        files=files,
        aliases=[order, f"{order}-seed{config['seed']}", "latest"],
        metadata={"name": result.name, **final_figures(result.final)},
    )


def record_sweep(run: "wandb.Run", sweep_dir: Path, report: "Report") -> None:
    """Logs every frontier as rows of the table `frontier` and as a plot, and the report's files."""
    import plotly.graph_objects as go
    import wandb

    from pqd.report import figures
    from pqd.report.words import setup

    axes = {
        f"{stage.name}.{key}": given.axis
        for stage in STAGES.values()
        for key, _, given in options.leaves(stage.settings_class()())
        if given.axis
    }
    none: dict[Key, dict[str, str]] = {}
    drawn = [(family.label, family.frontiers, none) for family in report.families]
    for search in report.searches:
        words = {
            t.row.key: {k: v for k, v in t.run.outcome.items() if v != str(None)}
            for t in search.trials
        }
        drawn.append((f"{search.label} · search", search.frontiers, words))
        axes |= {key: key for key in search.keys if key not in axes}
    columns = ["case", "order", *axes.values(), "cost", "unit", "measured_in", "accuracy"]
    columns += ["accuracy_low", "accuracy_high", "runs", "dominated"]
    table = wandb.Table(columns=list(columns))
    plots: dict[str, go.Figure] = {}
    for label, frontiers, words in drawn:
        for frontier in frontiers:
            where = frontier.condition
            unit = "bytes" if where is None else "ms"
            place = "" if where is None else f"{runtime(where.runtime)}, {setup(where)}"
            for point in frontier.points:
                mean = point.accuracy
                settings = words.get(point.key, {}) | dict(point.axes)
                at = [settings.get(key) for key in axes]
                row = (label, point.order, *at, point.cost, unit, place)
                table.add_data(*row, mean.mean, mean.low, mean.high, mean.n, point.dominated)
            figure = go.Figure(figures.frontier(frontier, report.looks))
            figure.update_layout(title=", ".join(filter(None, (label, place))))
            kind = "size" if where is None else "latency"
            plots[f"accuracy_{kind}/{len(plots) + 1}"] = figure
    run.log({"frontier": table, **plots, **_channels(report)})
    run.summary.update({"verdict": report.verdict, "jobs": len(report.runs)})
    files = [sweep_dir / name for name in ("report.html", "report.md", "points.csv")]
    if files := [file for file in files if file.exists()]:
        name = f"report-{sweep_dir.resolve().name}"
        _upload(run, name, "report", files, aliases=["latest"], metadata={})


def _channels(report: "Report") -> dict[str, Any]:
    """The table `channels`, a row per layer, and a plot per case; nothing where none were removed.

    Figures are means over seeds, those with `dense` in their name of the dense network.
    """
    import plotly.graph_objects as go
    import wandb

    from pqd.report import shapes

    columns: list[str | int] = ["case", "order", "layer", *shapes.PARTS]
    columns += [f"dense_{name}" for name in shapes.PARTS]
    rows: list[list[Any]] = []
    plots: dict[str, go.Figure] = {}
    for view in report.cases:
        for shape in view.shapes:
            for layer in shape.layers:
                kept = (e.mean if (e := layer.kept.get(part)) else None for part in shapes.PARTS)
                dense = (layer.dense.get(part) for part in shapes.PARTS)
                rows.append([view.case.label, shape.order, layer.name, *kept, *dense])
        if view.shapes:
            figure = go.Figure(shapes.figure(view.shapes, report.looks))
            plots[f"channels_kept/{len(plots) + 1}"] = figure.update_layout(title=view.case.label)
    return {"channels": wandb.Table(columns=columns, data=rows), **plots} if rows else {}


def _upload(
    run: "wandb.Run",
    name: str,
    kind: str,
    files: list[Path],
    aliases: list[str],
    metadata: dict[str, Any],
) -> None:
    import wandb

    name = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:128]  # what W&B accepts
    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    for file in files:
        # The files stay where they are: neither copied to a staging folder nor to a cache.
        artifact.add_file(str(file.resolve()), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=aliases)
