"""The `camera-edit` command line.

Each command imports what it needs when it runs: torch and Ray take seconds to import, which `--help` does not need.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from serve_app import __version__
from serve_app.errors import ServiceError, StartupError, UsageError
from serve_app.tools.edit import arguments as edit_arguments
from serve_app.tools.load import arguments as load_arguments
from serve_app.tools.numbers import at_least_0, at_least_1
from serve_app.tools.plan import arguments as plan_arguments

FAILED = 1
USAGE = 2  # argparse's exit status for a wrong command line
INTERRUPTED = 130  # the shells' exit status for SIGINT

EPILOG = """exit status: 0 done, 1 failed, 2 wrong command line, 130 after Ctrl-C
completion in bash or zsh: eval "$(register-python-argcomplete camera-edit)\""""

Command = Callable[[argparse.Namespace], int | None]
"""Returns an exit status; None is 0."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0; 1 or, for a wrong command line, 2, with a message on stderr; 130
    after Ctrl-C."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell's completion
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    command: Command = arguments.command
    try:
        status = command(arguments)
    except (StartupError, ServiceError, OSError) as problem:
        print(f"camera-edit: {_describe_error(problem)}", file=sys.stderr)
        return FAILED
    except UsageError as problem:
        print(f"camera-edit: {problem} `camera-edit {arguments.subcommand} --help` has examples.", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return status or 0


def _describe_error(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.filename is not None and problem.strerror is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="camera-edit",
        description="Edit pictures and move the camera around them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="subcommand")

    def add(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "\n  ".join(["examples:", *examples])
        formatter = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=formatter)

    _add_demo(
        add(
            "demo",
            "run the whole service here with tiny weights and try each mode",
            "camera-edit demo",
            "camera-edit demo --keep --port 8000",
        )
    )
    _add_edit(add("edit", edit_arguments.HELP, *edit_arguments.EXAMPLES))
    check = add(
        "check", "check a Serve config file and list what it would run", "camera-edit check configs/gpu-1x48gb.yaml"
    )
    check.add_argument(
        "file", type=Path, metavar="FILE", help="a Serve config, or manifests with a RayService; -: stdin"
    )
    check.set_defaults(command=_check)
    _add_doctor(
        add(
            "doctor",
            "check whether this machine can run a Serve file, and name fixes",
            "camera-edit doctor configs/gpu-1x48gb.yaml",
            "camera-edit doctor configs/tiny-cpu.yaml --json",
        )
    )
    _add_run(
        add(
            "run",
            "`serve run FILE` that ends if it cannot start, and finishes accepted work before it stops",
            "camera-edit run configs/gpu-1x48gb.yaml",
            "camera-edit run configs/tiny-cpu.yaml --grace 60",
        )
    )
    _add_bench(
        add(
            "bench",
            "measure the engine's optimizations on this machine, or a running server under load",
            "camera-edit bench engine",
            "camera-edit bench engine --rounds 1 --json figures.json --plot steps.png",
            *load_arguments.EXAMPLES,
        )
    )
    _add_plan(add("plan", plan_arguments.HELP, *plan_arguments.EXAMPLES))
    _add_drain(
        add(
            "drain",
            "let a running service finish its accepted work, and accept no more",
            "camera-edit drain http://127.0.0.1:8000",
            "camera-edit drain http://127.0.0.1:8000 --undo",
        )
    )
    generate = add("generate", "write the generated files in configs/", "camera-edit generate serve_config.yaml")
    generate.add_argument("file", type=Path, metavar="FILE", help="the Serve config of a cluster")
    generate.set_defaults(command=_generate)
    openapi = add("openapi", "print the OpenAPI document (configs/openapi.json)", "camera-edit openapi > openapi.json")
    openapi.set_defaults(command=_openapi)
    _add_mcp(
        add(
            "mcp",
            "bridge a service's tools to an MCP client that only starts programs",
            "camera-edit mcp --url http://127.0.0.1:8000",
        )
    )
    _add_tiny(
        add(
            "tiny",
            "write a tiny checkpoint of random weights, or train one",
            "camera-edit tiny weights",
            "camera-edit tiny --train toy",
        )
    )
    return parser


def _add_edit(edit: argparse.ArgumentParser) -> None:
    edit_arguments.add_edit_arguments(edit)
    edit.set_defaults(command=_edit)


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan_arguments.add_plan_arguments(plan)
    plan.set_defaults(command=_plan)


def _add_mcp(mcp: argparse.ArgumentParser) -> None:
    mcp.add_argument("--url", metavar="URL", help=edit_arguments.URL_HELP)
    mcp.add_argument("--key", metavar="KEY", help="API key (default: $CAMERA_EDIT_API_KEY, or key in that file)")
    mcp.set_defaults(command=_mcp)


def _add_tiny(tiny: argparse.ArgumentParser) -> None:
    tiny.add_argument("folder", type=Path, metavar="DIR", help="for random weights: must be empty or not exist")
    tiny.add_argument(
        "--train", action="store_true", help="train in DIR and export at the end; a second run resumes the first"
    )
    tiny.add_argument(
        "--cyanotype", action="store_true", help="with --train: only that adapter, on the shipped weights"
    )
    tiny.add_argument(
        "--minutes", type=at_least_0, metavar="N", default=math.inf, help="stop a stage that takes longer"
    )
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
    engine.add_argument("--rounds", type=at_least_1, metavar="N", default=5, help="default: 5")
    engine.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file, too")
    engine.add_argument("--plot", type=Path, metavar="FILE", help="plot the step times to this PNG file")
    engine.add_argument("--paper", action="store_true", help="compute each stage's roofline on a GPU; measures nothing")
    engine.add_argument("--card", choices=("h100", "h200", "l40s", "4090"), default="h200", help="default: h200")
    engine.set_defaults(command=_bench)
    serve = parts.add_parser("serve", help=load_arguments.HELP, description=load_arguments.HELP)
    load_arguments.add_load_arguments(serve)
    serve.set_defaults(command=_bench_serve)


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default: configs/tiny-cpu.yaml")
    doctor.add_argument("--deep", action="store_true", help="hash all weights, not the LoRAs alone")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("file", type=Path, metavar="FILE", help="a Serve config")
    run.add_argument(
        "--grace", type=at_least_0, metavar="S", default=1800, help="seconds to finish work in (default: 1800)"
    )
    run.set_defaults(command=_run)


def _add_drain(drain: argparse.ArgumentParser) -> None:
    drain.add_argument("url", metavar="URL", help="URL of the service, such as http://127.0.0.1:8000")
    drain.add_argument("--timeout", type=at_least_0, metavar="S", default=1800, help="seconds to wait (default: 1800)")
    drain.add_argument("--undo", action="store_true", help="end a drain: let the service take new work again")
    drain.set_defaults(command=_drain)


def _run(arguments: argparse.Namespace) -> int:
    from serve_app.tools.run import run

    return run(arguments.file, arguments.grace, print)


def _edit(arguments: argparse.Namespace) -> int:
    from serve_app.tools.edit.run import run_edit

    return 0 if run_edit(edit_arguments.EditArguments.of(arguments)) else FAILED


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


def _bench_serve(arguments: argparse.Namespace) -> int:
    from serve_app.tools.load.run import run_load

    return 0 if run_load(load_arguments.LoadOptions.of(arguments)) else FAILED


def _plan(arguments: argparse.Namespace) -> None:
    from serve_app.tools.plan.run import run_plan

    run_plan(plan_arguments.PlanOptions.of(arguments))


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


def _generate(arguments: argparse.Namespace) -> None:
    from serve_app.tools.manifests import write_manifests

    for path in write_manifests(arguments.file):
        print(path)


def _openapi(arguments: argparse.Namespace) -> None:
    from serve_app.tools.openapi import openapi_text

    print(openapi_text(), end="")


def _tiny(arguments: argparse.Namespace) -> None:
    from serve_app.tools.demo.environment import prepare_environment

    prepare_environment()
    if arguments.train:
        _train_tiny(arguments.folder, arguments.minutes, arguments.cyanotype)
        return
    from serve_app.tiny.checkpoint import build_checkpoint

    build_checkpoint(arguments.folder)
    print(f"The tiny checkpoint (random weights, real architecture) is in {arguments.folder}:")
    _print_parts(arguments.folder)


def _train_tiny(folder: Path, minutes: float, cyanotype: bool) -> None:
    from serve_app.tools.training.run import train, train_cyanotype

    exported = (train_cyanotype if cyanotype else train)(folder, max_seconds=60 * minutes)
    if exported is None:
        flags = "--train --cyanotype" if cyanotype else "--train"
        print(f"Not finished: `camera-edit tiny {flags} {folder}` resumes the training.")
        return
    print(f"The toy world's weights and their scores (about.json) are in {exported}:")
    _print_parts(exported)


def _print_parts(folder: Path) -> None:
    from serve_app.tiny.checkpoint import PARTS

    for part in PARTS:
        files = [file for file in (folder / part).rglob("*") if file.is_file()]
        if not files:
            continue
        size = sum(file.stat().st_size for file in files)
        print(f"  {folder / part}  ({len(files)} files, {size / 1e6:.1f} MB)")


if __name__ == "__main__":
    raise SystemExit(main())
