"""The warning of a rewriter that is slower than the editors."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import AppSettings
from serve_app.tools.check import describe
from serve_app.tools.check.speed import edits_per_s, rewrites_per_s
from serve_app.weights.architectures import find_edit_model, find_rewriter
from tests.conftest import ROOT, settings_in

CLUSTER = ROOT / "serve_config.yaml"
WITH_REWRITER = [path for path in sorted((ROOT / "configs").glob("gpu-*.yaml")) if settings_in(path).rewriter]


def warnings_of(tmp_path: Path, replicas: int | str | None = None, **rewriter: Any) -> list[str]:
    """The warnings about the cluster's file with other settings of its rewriter and its editors."""
    config = yaml.safe_load(CLUSTER.read_text())
    (application,) = config["applications"]
    application["args"]["rewriter"] |= rewriter
    if replicas is not None:
        (editor,) = (each for each in application["deployments"] if each["name"] == "Editor")
        del editor["autoscaling_config"]
        editor["num_replicas"] = replicas
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [line.strip() for line in describe(path).splitlines() if "rewriter is slower" in line]


@pytest.mark.parametrize("path", WITH_REWRITER, ids=lambda path: path.name)
def test_the_shipped_files_have_no_slow_rewriter(path: Path) -> None:
    assert "rewriter is slower" not in describe(path)


def test_seven_editors_are_faster_than_a_rewriter_of_one_prompt_at_a_time(tmp_path: Path) -> None:
    (warning,) = warnings_of(tmp_path, max_batch_size=1, compile=False)
    assert warning.startswith("warning: the rewriter is slower than the editors: 0.5 prompts and ")
    assert "(computed, if each edit asks for a rewrite)" in warning
    assert warnings_of(tmp_path, replicas=1, max_batch_size=1, compile=False) == []


def test_the_most_editors_that_serve_may_start_count(tmp_path: Path) -> None:
    assert len(warnings_of(tmp_path, replicas=30, compile=False)) == 1
    assert len(warnings_of(tmp_path, replicas="auto", compile=False)) == 1


def test_few_tokens_make_small_batches(tmp_path: Path) -> None:
    assert len(warnings_of(tmp_path, max_batch_tokens=2000, compile=False)) == 1


def test_an_unknown_model_is_not_judged(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, source={"path": "someone/other-model"}, max_batch_size=1) == []


def test_computed_speeds_are_near_what_was_seen() -> None:
    """One H100: an edit of 4 steps with one reference takes some seconds, a rewrite alone, not compiled, two."""
    settings: AppSettings = settings_in(CLUSTER)
    assert settings.rewriter is not None
    assert settings.rewriter.source is not None
    editor, rewriter = find_edit_model(settings.editor.base), find_rewriter(settings.rewriter.source)
    assert editor is not None
    assert rewriter is not None
    assert 0.2 < edits_per_s(editor.transformer, settings) < 0.6
    alone = settings.model_copy(
        update={"rewriter": settings.rewriter.model_copy(update={"max_batch_size": 1, "compile": False})}
    )
    assert 0.4 < rewrites_per_s(rewriter, alone) < 0.6
    assert rewrites_per_s(rewriter, settings) > 4 * rewrites_per_s(rewriter, alone)
