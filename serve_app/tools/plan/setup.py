"""What a plan takes from a Serve file and from a mix: an editor's limits, and the tokens of each kind of edits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.config import AppSettings, Routing, Scheduling, SizeSettings
from serve_app.edits.sizes import fit_area
from serve_app.tools.bench.run import read_application
from serve_app.tools.load.mix import EditKind


@dataclass(frozen=True)
class Autoscaling:
    """Serve's settings of the Editor with Serve's defaults, and how long a new editor takes to start. Times in
    seconds."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    start_s: float = 180.0


@dataclass(frozen=True)
class Setup:
    """Of a cell: how its editors schedule edits and how many requests each takes."""

    sizes: SizeSettings
    max_pack_tokens: int
    max_paused_edits: int
    scheduling: Scheduling
    routing: Routing
    max_ongoing_requests: int
    autoscaling: Autoscaling | None

    def reference_tokens(self, kind: EditKind) -> list[int]:
        """Of each reference, as the VAE gets it: of the configured area, whatever size was sent."""
        size = fit_area(self.sizes.vae_area_px, kind.reference.width / kind.reference.height)
        return [size.num_tokens] * kind.references

    def tokens(self, kind: EditKind) -> int:
        """Of a step; guidance doubles them."""
        one = kind.output.num_tokens + sum(self.reference_tokens(kind))
        return one * self.num_prompts(kind)

    def num_prompts(self, kind: EditKind) -> int:
        return 2 if kind.true_cfg_scale > 1 else 1


def read_setup(file: Path) -> tuple[AppSettings, Setup]:
    """The application's settings in a Serve file, and the setup of its editors.

    Raises:
        ConfigError: the file holds no valid settings of this application.
        OSError: it cannot be read.
    """
    application, settings = read_application(file)
    deployments = application.get("deployments", ())
    options: dict[str, Any] = next((each for each in deployments if each["name"] == "Editor"), {})
    editor, scaling = settings.editor, options.get("autoscaling_config")
    names = ("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
    return settings, Setup(
        sizes=settings.sizes,
        max_pack_tokens=editor.max_pack_tokens,
        max_paused_edits=editor.max_paused_edits,
        scheduling=editor.scheduling,
        routing=editor.routing,
        max_ongoing_requests=options.get("max_ongoing_requests", 288),
        autoscaling=None
        if scaling is None
        else Autoscaling(**{name: scaling[name] for name in names if name in scaling}),
    )
