"""A plain server to compare with: FastAPI, diffusers' own pipeline on the same weights, and a lock around it:
`python -m tests.benchmarks.stock_server --port N [--config FILE]`

It answers OpenAI's `/v1/images/edits` for one picture of the size and steps that the form names.
"""

import argparse
import base64
import io
import threading
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from diffusers import QwenImageEditPlusPipeline
from fastapi import FastAPI, File, Form, Response, UploadFile
from PIL import Image

from serve_app.config import RANDOM_FILE, AppSettings
from serve_app.editor.loading.load import load_pipeline
from serve_app.tools.bench.contenders import stock_pipeline
from tests.conftest import settings_in


def build_app(pipeline: QwenImageEditPlusPipeline) -> FastAPI:
    """The application around a pipeline. Pillow's and PNG's defaults are what a plain server uses."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/health")
    def health() -> Response:
        return Response()

    @app.post("/v1/images/edits")
    def edit(
        image: Annotated[list[UploadFile], File()],
        prompt: Annotated[str, Form()],
        size: Annotated[str, Form()],
        num_inference_steps: Annotated[int, Form()] = 4,
        seed: Annotated[int, Form()] = 0,
    ) -> dict[str, list[dict[str, str]]]:
        pictures = [Image.open(each.file).convert("RGB") for each in image]
        width, height = map(int, size.split("x"))
        with lock:
            result = pipeline(
                pictures,
                prompt,
                num_inference_steps=num_inference_steps,
                true_cfg_scale=1.0,
                width=width,
                height=height,
                generator=torch.Generator().manual_seed(seed),
            )
        file = io.BytesIO()
        result.images[0].save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode("ascii")}]}

    return app


def serve(settings: AppSettings, port: int) -> None:
    """Load the pipeline and serve it on this machine until a signal ends the process."""
    pipeline = load_pipeline(settings.editor)
    with stock_pipeline(pipeline, settings.editor, settings.sizes):
        uvicorn.run(build_app(pipeline), port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stock_server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--config", type=Path, default=RANDOM_FILE, help="a Serve file (default: configs/random-cpu.yaml)"
    )
    options = parser.parse_args()
    serve(settings_in(options.config), options.port)


if __name__ == "__main__":
    main()
