"""The pages: their links resolve, their commands exist and have tests, their settings are valid. README's programs and
the recipes of configs/README.md run in tests/service."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli import main
from serve_app.config import AdapterSettings, FetchSettings, JobSettings, LimitSettings, RewriterSettings, Settings
from serve_app.edits.picture_files import KINDS
from serve_app.errors import listed
from serve_app.ingress.openai.request import OpenAIForm
from serve_app.ingress.runpod.request import RunPodInput
from serve_app.tools.load.mix import read_mix
from tests.conftest import ROOT
from tests.pages import CONFIGS_README, PAGES, blocks, commands, inline, languages, programs, prose

TESTED_BY = {
    "camera-edit bench engine": "tests/tools/bench/test_bench.py",
    "camera-edit bench serve": "tests/tools/load/test_bench_serve.py",
    "camera-edit check": "tests/tools/check/test_check.py",
    "camera-edit demo": "tests/tools/demo/test_demo.py",
    "camera-edit doctor": "tests/tools/doctor/test_doctor.py",
    "camera-edit drain": "tests/tools/test_drain.py",
    "camera-edit edit": "tests/tools/edit/test_edit.py",
    "camera-edit generate": "tests/configs/test_kuberay.py",
    "camera-edit mcp": "tests/tools/test_mcp.py",
    "camera-edit openapi": "tests/configs/test_openapi.py",
    "camera-edit plan": "tests/tools/plan/test_plan_command.py",
    "camera-edit run": "tests/service/test_sigterm.py",
    "camera-edit tiny --train": "tests/tools/training/test_training.py",
    "camera-edit tiny": "tests/test_cli.py",
    "kubectl apply -k DIR": "tests/configs/test_kuberay.py",
    "kubectl create secret": "tests/configs/test_kuberay.py",
    "kubectl delete job camera-edit-weights": "tests/configs/test_kuberay.py",
    "kubectl kustomize": "tests/configs/test_kustomize.py",
    "kubectl wait": "tests/configs/test_kuberay.py",
    "mypy": "tests/test_lint.py",
    "pip install -e": "tests/test_pages.py",
    "pytest": "tests",
    "python -m tests.fuzz.run": "tests/fuzz/test_fuzz.py",
    "python -m tests.fuzz.sweep": "tests/fuzz/test_sweep.py",
    "python -m tests.service.hostile": "tests/service/test_hostile.py",
    "python -m tests.supply.audit": "tests/supply/test_audit.py",
    "ray start": "tests/configs/test_machines.py",
    "ruff": "tests/test_lint.py",
    "serve deploy": "tests/configs/test_machines.py",
    "serve run": "tests/service/test_no_gpu.py",
}
"""The test that runs each command of the pages, by the start of the command."""

BY_HAND = (
    "pipx install pip-audit",
    "python -m tests.supply.lock",
    *(
        f"python -m tests.benchmarks.{name}"
        for name in ("overhead", "page_speed", "scheduling", "screenshots", "simulation", "stock")
    ),
    *(f"python -m tests.service.{name}" for name in ("soak", "chaos", "outage", "cluster", "routing", "upgrade")),
)
"""Commands that take too long for a test, need the network, or install a program outside this environment."""

LANGUAGES = {"bash", "js", "json", "mermaid", "python", "yaml"}

COMMANDS = [(page, command) for page in PAGES for command in commands(page)]
EACH_COMMAND = pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def bare(command: str) -> str:
    """The command without the variables before it."""
    return re.sub(r"^([A-Z_]+=\S+ )+", "", command)


@EACH_PAGE
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not link.startswith(("https:", "http:")):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH_PAGE
def test_named_files_exist(page: Path) -> None:
    for text in inline(page):
        if re.fullmatch(r"(configs|serve_app|tests)/[\w./-]*", text):
            assert (ROOT / text).exists(), text


@EACH_PAGE
def test_each_block_has_a_language_that_is_checked(page: Path) -> None:
    assert languages(page) <= LANGUAGES


def test_only_readme_and_the_recipes_have_programs() -> None:
    for page in PAGES[1:]:
        assert not blocks(page, "python"), page
        assert not blocks(page, "js") or page == CONFIGS_README, page
    assert programs("python")
    assert programs("js")
    assert programs("bash")


@EACH_COMMAND
def test_each_command_has_a_test(command: str) -> None:
    if not bare(command).startswith(BY_HAND):
        tests = [test for start, test in TESTED_BY.items() if bare(command).startswith(start)]
        assert tests, command
        assert all((ROOT / test).exists() for test in tests)


@EACH_COMMAND
def test_files_and_modules_of_each_command_exist(command: str) -> None:
    for file in re.findall(r"\S+\.yaml", command):
        assert (ROOT / file).is_file()
    for module in re.findall(r"-m (\S+)", command):
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"--[\w-]+", command))
    for extra in re.findall(r"\.\[(\w+)\]", command):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extra in project["optional-dependencies"]


@EACH_COMMAND
def test_camera_edit_knows_each_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    match = re.match(r"camera-edit ((?:bench )?[a-z]+)", bare(command))
    if match is not None:
        with pytest.raises(SystemExit) as caught:
            main([*match[1].split(), "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(option in text for option in re.findall(r"--[\w-]+", command))


# A file of LiteLLM's is among them, which tests/service/test_recipes.py uses.
SETTINGS = [text for page in PAGES for text in blocks(page, "yaml") if "model_list" not in text]


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_are_valid(text: str) -> None:
    settings = yaml.safe_load(text)
    assert settings
    models: dict[str, type[Settings]] = {"fetch": FetchSettings, "jobs": JobSettings, "rewriter": RewriterSettings}
    for deployment in settings.pop("deployments", []):
        AdapterSettings.model_validate(deployment["user_config"])
    assert set(settings) <= set(models)
    for name, given in settings.items():
        models[name].model_validate(given)


def test_each_json_block_is_a_mix_of_edits(tmp_path: Path) -> None:
    mixes = [text for page in PAGES for text in blocks(page, "json")]
    assert mixes
    for number, text in enumerate(mixes):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        assert read_mix(file)


def test_readme_documents_every_field_of_a_job_and_every_kind_of_picture() -> None:
    table = (ROOT / "README.md").read_text().partition("### Fields and answer")[2].partition("\n## ")[0]
    missing = [name for name in RunPodInput.model_fields if f"`{name}`" not in table]
    assert missing == []
    kinds = [KINDS[name].title for name in LimitSettings().picture_kinds]
    assert f"{listed(kinds)} in base64" in table


def test_readme_documents_every_field_of_an_edit_that_has_no_effect_or_is_rejected() -> None:
    section = (ROOT / "README.md").read_text().partition("### As OpenAI's")[2].partition("\n### ")[0]
    without_type = [name for name, field in OpenAIForm.model_fields.items() if field.annotation is Any]
    assert [name for name in without_type if f"`{name}`" not in section] == []
