"""The `pqd` command: all that is done with runs, models and results after training."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pqd.config import RuntimeConfig
from pqd.errors import UserError, one_line
from pqd.runtimes import REFERENCE
from pqd.terminal import drop_output, tolerant_output

CACHE = Path("cache")  # as in conf/cache/on.yaml
LONGEST = 36_500  # days


def main() -> None:
    """Runs one subcommand; a user's mistake, or what the system refuses, is a line and code 1."""
    tolerant_output()
    arguments = _parser().parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except UserError as error:
        _complain(error)
    except BrokenPipeError:
        drop_output()
    except OSError as error:
        _complain(one_line(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1)


def _complain(what: object) -> None:
    print(f"pqd: {what}", file=sys.stderr)


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

    bench = commands.add_parser("bench", help="measure runs or models on this machine")
    bench.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN_OR_MODEL",
        help="a run's folder, an .onnx or a .pqd file",
    )
    names = RuntimeConfig().names
    usual = f"default: {' '.join(names)}"
    bench.add_argument("--runtime", nargs="+", default=names, metavar="NAME", help=usual)
    bench.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=[1, 0],
        metavar="N",
        help="0: all cores; default: 1 0",
    )
    bench.add_argument(
        "--batch", nargs="+", type=int, default=[1], metavar="N", help="images per call; default: 1"
    )
    bench.set_defaults(run=_bench)

    predict = commands.add_parser("predict", help="classify images")
    predict.add_argument("model", type=Path, help="model.onnx or model.pqd")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.set_defaults(run=_predict)

    inspect = commands.add_parser("inspect", help="show what each layer costs and loses")
    inspect.add_argument(
        "path", type=Path, metavar="RUN_OR_MODEL", help="a run's folder, an .onnx or a .pqd file"
    )
    inspect.add_argument(
        "--float", type=Path, help="FP32 model to compare with; default: the run's"
    )
    inspect.add_argument(
        "--runtime", nargs="+", default=[REFERENCE], metavar="NAME", help=f"default: {REFERENCE}"
    )
    inspect.set_defaults(run=_inspect)

    report = commands.add_parser("report", help="build a report from the results in folders")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    report.add_argument("--output", type=Path, help="default: the first folder")
    report.set_defaults(run=_report)

    rerun = commands.add_parser(
        "rerun", help="repeat a run and show what differs; code 1 if its accuracy does"
    )
    rerun.add_argument("run_or_result", type=Path, metavar="RUN_OR_RESULT")
    rerun.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="e.g. dataset.root=/images"
    )
    rerun.add_argument("--output", type=Path, metavar="DIR", help="default: below outputs/rerun")
    rerun.add_argument("--compare", action="store_true", help="show what differs, without a run")
    rerun.set_defaults(run=_rerun)

    cache = commands.add_parser(
        "cache", help="list or delete finished stages, and what killed jobs left"
    )
    cache.add_argument("action", choices=["ls", "prune"])
    cache.add_argument("--dir", type=Path, default=CACHE, help="default: %(default)s")
    cache.add_argument(
        "--days",
        type=float,
        default=30,
        help="prune what was not used for so many days (default: %(default)s; 0: everything)",
    )
    cache.set_defaults(run=_cache)

    dashboard = commands.add_parser("dashboard", help="make a workspace in Weights & Biases")
    dashboard.add_argument("target", metavar="ENTITY/PROJECT")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _pack(arguments: argparse.Namespace) -> None:
    from pqd.package import pack

    _distinct(arguments.model, arguments.package)
    size = pack(arguments.model, arguments.package)
    print(f"{arguments.package}: {size:,} bytes ({arguments.model.stat().st_size:,} before)")


def _unpack(arguments: argparse.Namespace) -> None:
    from pqd.package import unpack

    _distinct(arguments.package, arguments.model)
    unpack(arguments.package, arguments.model)
    print(f"{arguments.model}: {arguments.model.stat().st_size:,} bytes")


def _distinct(source: Path, target: Path) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target} would be overwritten by what is made of it; give another file")


def _bench(arguments: argparse.Namespace) -> None:
    from pqd.measure.bench import bench
    from pqd.measure.table import advice, latency_table
    from pqd.measure.timings import Latencies
    from pqd.progress import make_console

    def show(path: Path, rows: Latencies) -> None:
        make_console().print(latency_table(str(path), rows))
        print(advice(rows))

    runtime = RuntimeConfig(
        names=arguments.runtime, threads=arguments.threads, batch_sizes=arguments.batch
    )
    try:
        for path in bench(arguments.paths, runtime, show):
            print(path)
    except UserError as error:
        line = str(error)
        for key, flag in (("names", "runtime"), ("threads", "threads"), ("batch_sizes", "batch")):
            line = line.replace(f"runtime.{key}=", f"--{flag} ")
        raise UserError(line) from None


def _predict(arguments: argparse.Namespace) -> int:
    from pqd.measure.predict import predict

    code = 0
    for found in predict(arguments.model, arguments.images):
        if isinstance(found, UserError):
            _complain(found)
            code = 1
        else:
            print(f"{found.path}: {found.name} ({100 * found.probability:.1f} %)")
    return code


def _inspect(arguments: argparse.Namespace) -> None:
    from pqd.inspect.paths import inspect, layer_table
    from pqd.inspect.words import worst
    from pqd.progress import make_console

    found = inspect(arguments.path, arguments.runtime, arguments.float)
    make_console().print(layer_table(str(arguments.path), found.layers))
    print("\n".join([*found.left_out, worst(found.layers, found.bytes)]))


def _report(arguments: argparse.Namespace) -> None:
    from pqd.report import build

    output = arguments.output or arguments.folders[0]
    try:
        print(build(arguments.folders, output))
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or one_line(error)}") from None


def _rerun(arguments: argparse.Namespace) -> int:
    from pqd import interrupts
    from pqd.rerun import rerun

    interrupts.listen()  # it trains
    run, compare = arguments.run_or_result, arguments.compare
    same = rerun(run, arguments.output, arguments.set, only_compare=compare)
    return int(not same)


def _cache(arguments: argparse.Namespace) -> None:
    from pqd.cache import Cache

    if not 0 <= arguments.days <= LONGEST:
        raise UserError(f"--days={arguments.days:g} is outside [0, {LONGEST}]")
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
