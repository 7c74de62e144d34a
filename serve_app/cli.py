"""The `camera-edit` command line.

Each command imports what it needs when it runs: torch and Ray take seconds to import, which `--help` does not need.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from serve_app import __version__
from serve_app.errors import ServiceError, StartupError

FAILED = 1
INTERRUPTED = 130  # the shells' exit status for SIGINT

Command = Callable[[argparse.Namespace], None]


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 with a message on stderr, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        command(arguments)
    except (StartupError, ServiceError, OSError) as problem:
        print(f"camera-edit: {_describe_error(problem)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _describe_error(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.filename is not None and problem.strerror is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="camera-edit", description="Edit pictures and move the camera around them.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="run the whole service here with tiny weights and try each mode"))
    check = commands.add_parser("check", help="check a Serve config file and list what it would run")
    check.add_argument("file", type=Path, metavar="FILE", help="a Serve config, or a RayService that holds one")
    check.set_defaults(command=_check)
    _add_doctor(commands.add_parser("doctor", help="check whether this machine can run a Serve file, and name fixes"))
    _add_run(commands.add_parser("run", help="`serve run FILE` that finishes accepted work before it stops"))
    _add_bench(commands.add_parser("bench", help="measure the engine's optimizations on this machine"))
    _add_drain(commands.add_parser("drain", help="let a running service finish its accepted work, and accept no more"))
    openapi = commands.add_parser("openapi", help="print the OpenAPI document (configs/openapi.json)")
    openapi.set_defaults(command=_openapi)
    _add_mcp(commands.add_parser("mcp", help="bridge a service's tools to an MCP client that only starts programs"))
    _add_tiny(commands.add_parser("tiny", help="write a tiny checkpoint of random weights, or train one"))
    return parser


def _add_mcp(mcp: argparse.ArgumentParser) -> None:
    mcp.add_argument("--url", metavar="URL", default="http://127.0.0.1:8000", help="default: http://127.0.0.1:8000")
    mcp.add_argument("--key", metavar="KEY", help="API key (default: $CAMERA_EDIT_API_KEY)")
    mcp.set_defaults(command=_mcp)


def _add_tiny(tiny: argparse.ArgumentParser) -> None:
    tiny.add_argument("folder", type=Path, metavar="DIR", help="for random weights: must be empty or not exist")
    tiny.add_argument(
        "--train", action="store_true", help="train in DIR and export at the end; a second run resumes the first"
    )
    tiny.add_argument("--minutes", type=float, metavar="N", default=math.inf, help="stop a stage that takes longer")
    tiny.set_defaults(command=_tiny)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--image", type=Path, metavar="FILE", help="first picture (default: toys)")
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("demo-out"), help="default: demo-out")
    demo.add_argument("--keep", action="store_true", help="keep the service running until Ctrl-C")
    demo.add_argument("--port", type=int, metavar="N", help="default: a free one")
    demo.set_defaults(command=_demo)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    parts = bench.add_subparsers(required=True, metavar="PART")
    engine = parts.add_parser("engine", help="the engine alone, without Ray, against diffusers' own pipeline")
    engine.add_argument("--config", type=Path, metavar="FILE", help="a Serve config (default: configs/random-cpu.yaml)")
    engine.add_argument("--random-weights", action="store_true", help="full-size random weights, without a download")
    engine.add_argument("--rounds", type=int, metavar="N", default=5, help="default: 5")
    engine.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file, too")
    engine.add_argument("--plot", type=Path, metavar="FILE", help="plot the step times to this PNG file")
    engine.add_argument("--paper", action="store_true", help="compute each stage's roofline on a GPU; measures nothing")
    engine.add_argument("--card", choices=("h100", "h200", "l40s", "4090"), default="h200", help="default: h200")
    engine.set_defaults(command=_bench)


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: configs/tiny-cpu.yaml")
    doctor.add_argument("--deep", action="store_true", help="hash all weights, not the LoRAs alone")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("file", type=Path, metavar="FILE", help="a Serve config")
    run.add_argument("--grace", type=float, metavar="S", default=1800, help="seconds to finish work in (default: 1800)")
    run.set_defaults(command=_run)


def _add_drain(drain: argparse.ArgumentParser) -> None:
    drain.add_argument("url", metavar="URL", help="URL of the service, such as http://127.0.0.1:8000")
    drain.add_argument("--timeout", type=float, metavar="S", default=1800, help="seconds to wait (default: 1800)")
    drain.add_argument("--undo", action="store_true", help="end a drain: let the service take new work again")
    drain.set_defaults(command=_drain)


def _run(arguments: argparse.Namespace) -> None:
    from serve_app.tools.run import run

    status = run(arguments.file, arguments.grace, print)
    if status:
        raise SystemExit(status)


def _drain(arguments: argparse.Namespace) -> None:
    from serve_app.tools.drain import drain, undrain

    if arguments.undo:
        undrain(arguments.url)
        print("the drain is undone: new work is taken")
        return
    drain(arguments.url, arguments.timeout, print)
    print("drained: nothing is in flight and no new work is taken")


def _bench(arguments: argparse.Namespace) -> None:
    from serve_app.tools.bench.run import BenchOptions, run_bench

    chosen = vars(arguments)
    run_bench(BenchOptions(**{field.name: chosen[field.name] for field in fields(BenchOptions)}))


def _demo(arguments: argparse.Namespace) -> None:
    from serve_app.tools.demo.environment import prepare_environment

    prepare_environment()
    from serve_app.tools.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(arguments.image, arguments.out, arguments.keep, arguments.port))


def _check(arguments: argparse.Namespace) -> None:
    from serve_app.tools.check import describe

    print(describe(arguments.file))


def _doctor(arguments: argparse.Namespace) -> None:
    from serve_app.tools.doctor.run import run_doctor

    if not run_doctor(arguments.file, arguments.deep, arguments.json, print):
        raise SystemExit(FAILED)


def _mcp(arguments: argparse.Namespace) -> None:
    from serve_app.tools.mcp import run_bridge

    run_bridge(arguments.url, arguments.key)


def _openapi(arguments: argparse.Namespace) -> None:
    from serve_app.tools.openapi import openapi_text

    print(openapi_text(), end="")


def _tiny(arguments: argparse.Namespace) -> None:
    from serve_app.tools.demo.environment import prepare_environment

    prepare_environment()
    if arguments.train:
        _train_tiny(arguments.folder, arguments.minutes)
        return
    from serve_app.tiny.checkpoint import build_checkpoint

    build_checkpoint(arguments.folder)
    print(f"The tiny checkpoint (random weights, real architecture) is in {arguments.folder}:")
    _print_parts(arguments.folder)


def _train_tiny(folder: Path, minutes: float) -> None:
    from serve_app.tools.training.run import train

    exported = train(folder, max_seconds=60 * minutes)
    if exported is None:
        print(f"Not finished: `camera-edit tiny --train {folder}` resumes the training.")
        return
    print(f"The toy world's weights and their scores (about.json) are in {exported}:")
    _print_parts(exported)


def _print_parts(folder: Path) -> None:
    from serve_app.tiny.checkpoint import PARTS

    for part in PARTS:
        files = [file for file in (folder / part).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"  {folder / part}  ({len(files)} files, {size / 1e6:.1f} MB)")


if __name__ == "__main__":
    raise SystemExit(main())
