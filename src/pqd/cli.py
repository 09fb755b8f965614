"""The `pqd` command: everything one does with artifacts and results after training."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pqd.config import RuntimeConfig
from pqd.errors import UserError

CACHE = Path("cache")  # as in conf/cache/on.yaml


def main() -> None:
    """Runs one subcommand; a user's mistake is one line and exit code 1."""
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"pqd: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pqd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pack = commands.add_parser("pack", help="model.onnx to an entropy-coded package")
    pack.add_argument("model", type=Path)
    pack.add_argument("package", type=Path)
    pack.set_defaults(run=_pack)

    unpack = commands.add_parser("unpack", help="a package back to model.onnx, bit for bit")
    unpack.add_argument("package", type=Path)
    unpack.add_argument("model", type=Path)
    unpack.set_defaults(run=_unpack)

    bench = commands.add_parser("bench", help="measure existing artifacts on this machine")
    bench.add_argument("paths", type=Path, nargs="+", metavar="RUN_OR_MODEL")
    bench.add_argument("--runtime", nargs="+", default=["onnxruntime"], metavar="NAME")
    bench.add_argument("--threads", nargs="+", type=int, default=[1, 0], help="0 is all cores")
    bench.add_argument("--batch", nargs="+", type=int, default=[1])
    bench.set_defaults(run=_bench)

    predict = commands.add_parser("predict", help="classify images")
    predict.add_argument("model", type=Path, help="model.onnx or model.pqd")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    predict.set_defaults(run=_predict)

    report = commands.add_parser("report", help="build a report from the results in folders")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    report.add_argument("--output", type=Path, help="default: the first folder")
    report.set_defaults(run=_report)

    cache = commands.add_parser(
        "cache", help="list or delete finished stages and what killed jobs left"
    )
    cache.add_argument("action", choices=["ls", "prune"])
    cache.add_argument("--dir", type=Path, default=CACHE, help="default: %(default)s")
    cache.add_argument(
        "--days",
        type=float,
        default=30,
        help="prune what was not used for so long (default: %(default)s)",
    )
    cache.set_defaults(run=_cache)

    dashboard = commands.add_parser("dashboard", help="make a workspace in Weights & Biases")
    dashboard.add_argument("target", metavar="ENTITY/PROJECT")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _pack(arguments: argparse.Namespace) -> None:
    from pqd.package import pack

    size = pack(arguments.model, arguments.package)
    print(f"{arguments.package}: {size:,} bytes ({arguments.model.stat().st_size:,} before)")


def _unpack(arguments: argparse.Namespace) -> None:
    from pqd.package import unpack

    unpack(arguments.package, arguments.model)
    print(f"{arguments.model}: {arguments.model.stat().st_size:,} bytes")


def _bench(arguments: argparse.Namespace) -> None:
    from pqd.measure.bench import bench

    runtime = RuntimeConfig(
        names=arguments.runtime, threads=arguments.threads, batch_sizes=arguments.batch
    )
    for path in bench(arguments.paths, runtime):
        print(path)


def _predict(arguments: argparse.Namespace) -> None:
    from pqd.measure.predict import predict

    for path, name, probability in predict(arguments.model, arguments.images):
        print(f"{path}: {name} ({100 * probability:.1f} %)")


def _report(arguments: argparse.Namespace) -> None:
    from pqd.report import build

    print(build(arguments.folders, arguments.output or arguments.folders[0]))


def _cache(arguments: argparse.Namespace) -> None:
    from pqd.cache import Cache

    cache = Cache(arguments.dir)
    if arguments.action == "prune":
        items = list(cache.prune(datetime.now(UTC) - timedelta(days=arguments.days)))
    else:
        items = cache.items()
    for item in items:
        print(f"{item.key}  {item.used:%Y-%m-%d %H:%M}  {item.bytes:>13,} B  {item.label}")
    verb = "removed from" if arguments.action == "prune" else "in"
    total = sum(item.bytes for item in items)
    print(f"{len(items)} entries, {total:,} bytes, {verb} {arguments.dir}")


def _dashboard(arguments: argparse.Namespace) -> None:
    from pqd.tracking.dashboard import create_dashboard

    print(create_dashboard(arguments.target))
