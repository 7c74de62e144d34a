"""Compiled blocks: graphs, breaks and recompilations over packs of every kind, counted by a backend that compiles
nothing. On the CPU, at two heads; the graphs are those of any width."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.layout import SpanShape
from serve_app.editor.model.modulation import LiveModulation
from serve_app.editor.model.packed import PackedTransformer, Span

NUM_GRAPHS = 2  # before and after attention, whatever the block and the pack
SHAPES = [
    SpanShape((4, 4), ((4, 4),), 7),
    SpanShape((4, 6), ((4, 4), (2, 8), (6, 2)), 12),
    SpanShape((2, 2), ((4, 4),), 5),
    SpanShape((8, 8), ((2, 2),), 40),
]
PACKS = {
    "1 span": SHAPES[:1],
    "2 spans": SHAPES[1:3],
    "3 spans": SHAPES[:3],
    "8 spans": SHAPES * 2,
    "one of another size": SHAPES[3:],
    "guidance": [SHAPES[0], SpanShape((4, 4), ((4, 4),), 3)],
}
"""In an order in which nothing that varies does so from the first pack to the second alone."""


class CountingBackend:
    """Runs what torch.compile captures as it is, and keeps the graphs."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        run: Callable[..., Any] = graph.forward
        return run

    @property
    def symbolic_dimensions(self) -> set[int]:
        """The dimensions of inputs whose sizes vary."""
        return {
            dimension
            for graph in self.graphs
            for node in graph.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta["example_value"], torch.Tensor)
            for dimension, size in enumerate(node.meta["example_value"].shape)
            if not str(size).isdigit()
        }


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingBackend]:
    counting, compile_really = CountingBackend(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile_really(run, **options, backend=counting))
    torch._dynamo.reset()
    counters.clear()
    yield counting
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def transformer() -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        num_layers=2, num_attention_heads=2, joint_attention_dim=32, zero_cond_t=True
    ).requires_grad_(False)


def packed(
    transformer: QwenImageTransformer2DModel, *, compiled: bool = False, gelu_epilogue: bool = False
) -> PackedTransformer:
    attend, modulation = choose_attention("sdpa", torch.device("cpu")), LiveModulation(transformer)
    return PackedTransformer(transformer, modulation, attend, compiled=compiled, gelu_epilogue=gelu_epilogue)


def spans(shapes: list[SpanShape]) -> list[Span]:
    generator = torch.Generator().manual_seed(1)

    def tokens(number: int, width: int) -> torch.Tensor:
        return torch.randn(number, width, generator=generator)

    return [
        Span(
            tokens(shape.num_target, 64),
            tokens(shape.num_image - shape.num_target, 64),
            tokens(shape.num_text, 32),
            shape,
            100.0 * (1 + number),
        )
        for number, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("gelu_epilogue", [False, True])
def test_packs_of_every_kind_share_two_graphs_and_compute_the_same(
    gelu_epilogue: bool,
    backend: CountingBackend,
    transformer: QwenImageTransformer2DModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, plain = packed(transformer, compiled=True, gelu_epilogue=gelu_epilogue), packed(transformer)
    if gelu_epilogue:  # Only on CUDA is it the approximation.
        for block in transformer.transformer_blocks:
            for mlp in (block.txt_mlp, block.img_mlp):
                monkeypatch.setattr(mlp.net[0], "approximate", "none")
    with torch.inference_mode():
        for shapes in PACKS.values():
            for ours, expected in zip(compiled(spans(shapes)), plain(spans(shapes)), strict=True):
                torch.testing.assert_close(ours, expected)
    assert len(backend.graphs) == NUM_GRAPHS
    assert counters["graph_break"] == {}
    # Tokens and modulation rows; widths are constants.
    assert backend.symbolic_dimensions == {0}


def test_a_recompilation_per_pack_is_noticed(
    backend: CountingBackend, transformer: QwenImageTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo, "mark_dynamic", lambda tensor, dimension: None)
    compiled = packed(transformer, compiled=True)
    with torch.inference_mode():
        for shapes in ("1 span", "2 spans"):
            compiled(spans(PACKS[shapes]))
    assert len(backend.graphs) > NUM_GRAPHS
