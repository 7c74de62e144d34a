"""Edits of one picture go to one replica, within bounds; and Serve's router passes them on accordingly."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from ray.serve import Application
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest, RunningReplica

from serve_app.app import build
from serve_app.config import AppSettings, EditorSettings
from serve_app.serving import affinity
from serve_app.serving.affinity import EXCESS, MAX_EXTRA_LOAD, PictureAffinity
from serve_app.serving.picture_router import PictureRouter
from serve_app.serving.shared import key_of
from tests import fakes
from tests.service.routing import Counts, Measured, problems

REPLICAS = ("a", "b", "c")


def loads(**given: int) -> dict[str, int]:
    return dict.fromkeys(REPLICAS, 0) | given


def send(affinity: PictureAffinity, picture: str, loads: dict[str, int]) -> str:
    """Send an edit to the replica that is first in the order."""
    replica = affinity.order(picture, loads)[0]
    affinity.remember(picture, replica)
    loads[replica] += 1
    return replica


def test_callers_that_share_nothing_agree() -> None:
    orders = [[PictureAffinity().order(str(number), loads()) for number in range(50)] for _ in range(2)]
    assert orders[0] == orders[1]
    assert {order[0] for order in orders[0]} == set(REPLICAS)
    assert all(sorted(order) == list(REPLICAS) for order in orders[0])


def test_a_lost_replica_moves_only_its_own_pictures() -> None:
    pictures = [str(number) for number in range(100)]
    before = {picture: PictureAffinity().order(picture, loads())[0] for picture in pictures}
    after = {picture: PictureAffinity().order(picture, {"a": 0, "c": 0})[0] for picture in pictures}
    assert {picture for picture in pictures if before[picture] != after[picture]} == {
        picture for picture in pictures if before[picture] == "b"
    }


def test_views_follow_their_picture_until_its_replica_has_much_more_to_do() -> None:
    known, now = PictureAffinity(), loads()
    first = send(known, "x", now)
    while send(known, "x", now) == first:
        pass
    mean = sum(now.values()) / len(now)
    assert MAX_EXTRA_LOAD < now[first] <= EXCESS * mean + MAX_EXTRA_LOAD + 1


def test_a_picture_stays_where_its_last_edit_went() -> None:
    known = PictureAffinity()
    first = known.order("x", loads())[0]
    busy = {replica: 0 if replica != first else 100 for replica in REPLICAS}
    second = send(known, "x", busy)
    assert second != first
    assert known.order("x", loads())[0] == second


def test_unlike_edits_spread_evenly() -> None:
    known, now = PictureAffinity(), loads()
    for number in range(300):
        send(known, str(number), now)
    assert max(now.values()) <= EXCESS * 100 + 1


def test_full_replicas_come_last_the_least_busy_first() -> None:
    assert PictureAffinity().order("x", loads(a=9, b=60, c=50))[1:] == ["c", "b"]


def test_no_more_pictures_are_remembered_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "MAX_PICTURES", 2)
    known = PictureAffinity()
    away = {picture: known.order(picture, loads())[-1] for picture in "xyz"}
    for picture, replica in away.items():
        known.remember(picture, replica)
    assert [known.order(picture, loads())[0] == away[picture] for picture in "xyz"] == [False, True, True]


def test_equal_pictures_have_equal_keys() -> None:
    one, other = fakes.picture(), fakes.picture()
    changed = replace(other, vae_pixels=np.full_like(other.vae_pixels, 1))
    strided = replace(one, vae_pixels=np.zeros((64, 128, 3), np.uint8)[:, ::2])
    assert key_of((one,)) == key_of((other,)) == key_of((strided,))
    assert len({key_of(each) for each in [(one,), (changed,), (one, changed), (changed, one)]}) == 4


@dataclass
class FakeReplica:
    """A running replica that accepts up to `max_ongoing_requests`."""

    name: str
    max_ongoing_requests: int = 100
    length: int = 0
    replica_id: ReplicaID = field(init=False)
    node_id: str = "node"
    availability_zone: str | None = None
    multiplexed_model_ids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.replica_id = ReplicaID(self.name, DeploymentID("Editor"))

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.length


async def started(replicas: list[FakeReplica]) -> PictureRouter:
    router = PictureRouter(
        deployment_id=DeploymentID("Editor"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    known: Any = replicas
    router.update_replicas(known)
    return router


async def route(router: PictureRouter, picture: str, internal_id: str) -> str:
    """Route a call as Serve does; returns its replica's name."""
    metadata = RequestMetadata(request_id="r", internal_request_id=internal_id, session_id=picture)
    async with asyncio.timeout(30):
        replica: RunningReplica = await router._choose_replica_for_request(PendingRequest([], {}, metadata))
    router.on_send_request(replica.replica_id)
    return replica.replica_id.unique_id


def test_calls_of_one_request_reach_the_replicas_of_their_pictures() -> None:
    """All calls have the id of the HTTP request that makes them."""

    async def run() -> list[str]:
        router = await started([FakeReplica(name) for name in REPLICAS])
        pictures = [f"picture {number % 4}" for number in range(12)]
        return list(await asyncio.gather(*(route(router, picture, "one id") for picture in pictures)))

    found = asyncio.run(run())
    assert [set(found[number::4]) for number in range(4)] == [{found[number]} for number in range(4)]


def test_calls_without_a_picture_go_to_the_least_busy_replica() -> None:
    async def run() -> Counter[str]:
        router = await started([FakeReplica(name) for name in REPLICAS])
        return Counter([await route(router, "", str(number)) for number in range(9)])

    assert asyncio.run(run()) == dict.fromkeys(REPLICAS, 3)


def test_a_replica_that_accepts_nothing_is_passed_over() -> None:
    async def run() -> set[str]:
        full = [FakeReplica("a", max_ongoing_requests=1, length=1), FakeReplica("b", max_ongoing_requests=1, length=1)]
        router = await started([*full, FakeReplica("c")])
        return {await route(router, f"picture {number}", str(number)) for number in range(6)}

    assert asyncio.run(run()) == {"c"}


@pytest.mark.parametrize(("routing", "name"), [("picture", "PictureRouter"), ("balanced", "PowerOfTwo")])
def test_one_setting_switches_the_routing(routing: Any, name: str, tiny_settings: AppSettings) -> None:
    editor: EditorSettings = tiny_settings.editor.model_copy(update={"routing": routing})
    app: Application = build(tiny_settings.model_copy(update={"editor": editor}))
    (bound,) = [each for each in app._bound_deployment.init_args if getattr(each, "_bound_deployment", None)][:1]
    config = bound._bound_deployment._deployment_config.request_router_config
    assert name in str(config.get_request_router_class())


def test_the_measurement_on_a_cluster_notices_misses_and_an_editor_that_draws_most() -> None:
    before = Counts(1, 1, (1, 1, 1))
    good = Measured(Counts(15, 3, (9, 9, 1)) - before, Counts(0, 9, (2, 2, 5)), [])
    assert good.orbits == Counts(14, 2, (8, 8, 0))
    assert problems(replace(good, unlike=Counts(0, 9, (3, 2, 4)))) == []
    assert problems(good) == ["an editor drew 1.67 times the mean, 1.5 allowed"]
    bad = Measured(Counts(11, 5, (8, 8, 0)), Counts(0, 9, (3, 3, 3)), ["HTTP 500"])
    assert problems(bad) == [
        "a request failed: HTTP 500",
        "0.69 of the orbits' pictures were encoded, 0.8 wanted",
    ]
