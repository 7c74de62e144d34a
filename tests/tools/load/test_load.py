"""When requests are sent, which edits they are, and what the figures are made of."""

import asyncio
import io
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import pytest
from PIL import Image

from serve_app.errors import UsageError
from serve_app.tools.load.dialects import Answer, Send
from serve_app.tools.load.load import Outcome, arrival_times, closed_loop, open_loop
from serve_app.tools.load.mix import EditKind, edits_of, read_mix
from serve_app.tools.load.report import Figures, figures_of, quantile


class Server:
    """Answers requests once `num_together` are in flight, all of them at once; counts the most in flight."""

    def __init__(self, num_together: int) -> None:
        self.num_together = num_together
        self.in_flight = self.most = 0
        self.changed = asyncio.Condition()
        self.released = 0

    def make(self, number: int) -> Send:
        return self.send

    async def send(self) -> Answer:
        async with self.changed:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            if self.in_flight == self.num_together:
                self.released += self.num_together
                self.changed.notify_all()
            else:
                await self.changed.wait_for(lambda: self.released > 0)
            self.released -= 1
            self.in_flight -= 1
        return Answer()


def test_an_open_loop_sends_whether_or_not_there_are_answers() -> None:
    async def run() -> tuple[Server, list[Outcome]]:
        server = Server(num_together=5)
        async with asyncio.timeout(30):
            return server, await open_loop(server.make, iter([0.0, 0.01, 0.02, 0.03, 0.04]))

    server, outcomes = asyncio.run(run())
    assert server.most == 5
    assert [outcome.due_s for outcome in outcomes] == [0.0, 0.01, 0.02, 0.03, 0.04]


def test_a_closed_loop_has_one_request_per_client_in_flight() -> None:
    async def run() -> tuple[Server, list[Outcome]]:
        server = Server(num_together=3)
        async with asyncio.timeout(30):
            return server, await closed_loop(server.make, 3, lambda number: number < 12)

    server, outcomes = asyncio.run(run())
    assert server.most == 3
    assert len(outcomes) == 12


def test_arrivals_have_their_rate_and_follow_from_the_seed() -> None:
    def times(seed: int) -> list[float]:
        return list(takewhile(lambda due_s: due_s < 1000, arrival_times(5.0, seed)))

    assert len(times(1)) == pytest.approx(5000, rel=0.05)
    assert times(1) == times(1)
    assert times(1) != times(2)
    gaps = [after - before for before, after in zip(times(1)[:-1], times(1)[1:], strict=True)]
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # exponential: 1/e


def test_figures_are_of_the_measured_time() -> None:
    outcomes = [
        Outcome(1.0, 2.0),  # warm-up; its answer is within the measured time
        *(Outcome(2.0 + number / 10, 0.1 * (number + 1), None, 0.05) for number in range(10)),
        Outcome(5.0, 0.2, "HTTP 429"),
        Outcome(11.5, 3.0),  # answered after the end
        Outcome(12.5, 0.1),  # due after the end
    ]
    figures = figures_of(outcomes, warm_up_s=2.0, seconds=10.0, slo_s=0.5)
    assert (figures.num_warm_up, figures.num_requests) == (1, 12)
    assert figures.requests_per_s == pytest.approx(1.1)
    assert figures.errors == {"HTTP 429": 1}
    assert figures.within_slo == pytest.approx(5 / 12)
    assert figures.latency_s is not None
    assert figures.latency_s.p50 == pytest.approx(0.6)
    assert figures.latency_s.p99 == 3.0
    assert figures.first_preview_s is not None
    assert figures.first_preview_s.p95 == 0.05


def test_figures_without_a_success() -> None:
    assert figures_of([Outcome(0.0, 1.0, "ConnectError")], 0.0, 1.0, 1.0) == Figures(
        0, 1, 0.0, None, 0.0, None, {"ConnectError": 1}
    )


def test_quantiles_are_measured_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([7.0], 0.5) == 7.0


def test_a_mix_has_its_shares() -> None:
    mix = (EditKind(size="64x64", weight=3), EditKind(size="32x32", weight=1, views=4))
    edits = list(islice(edits_of(mix, 0), 4000))
    sizes = Counter(edit.kind.size for edit in edits)
    assert sizes["64x64"] / len(edits) == pytest.approx(0.75, abs=0.03)
    assert [edit.number for edit in edits] == list(range(4000))
    assert edits[:10] == list(islice(edits_of(mix, 0), 10))


def test_views_share_a_picture_and_no_other_edit_does() -> None:
    edits = list(islice(edits_of((EditKind(size="32x32", views=4), EditKind(size="32x32")), 0), 60))
    number_of = Counter(edit.picture for edit in edits if edit.picture != edits[-1].picture)
    assert set(number_of.values()) == {1, 4}
    orbit = [edit for edit in edits if edit.kind.views == 4][:4]
    assert len({edit.prompt for edit in orbit}) == 4
    assert len({edit.pictures()[0] for edit in orbit}) == 1
    alone = [edit for edit in edits if edit.kind.views == 1][:3]
    assert len({edit.pictures()[0] for edit in (*alone, orbit[0])}) == 4


def test_pictures_have_the_reference_size_and_differ_within_an_edit() -> None:
    kind = EditKind(size="64x64", references=3, reference_size="48x32")
    (edit,) = islice(edits_of((kind,), 0), 1)
    pictures = edit.pictures()
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(48, 32)] * 3
    assert len(set(pictures)) == 3


def test_a_mix_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text("- {weight: 3, size: 256x256}\n- {views: 8, fields: {azimuth: 45}}\n")
    assert read_mix(file) == (EditKind(weight=3, size="256x256"), EditKind(views=8, fields={"azimuth": 45}))
    assert read_mix(None) == (EditKind(),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it is empty"),
        ("- {sise: 64x64}", "0.sise: Extra inputs are not permitted"),
        ("- {size: 64}", "0.size: Input should be a valid string"),
        ("- {previews: 3, num_inference_steps: 3}", "previews must be less than num_inference_steps"),
        ("{", "expected the node content"),
    ],
)
def test_a_bad_mix_is_named(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{file} is no list of kinds of edits: ") as caught:
        read_mix(file)
    assert reason in str(caught.value)
