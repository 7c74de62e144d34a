"""Serve's request router for the editors: edits of one picture go to one replica, with bounded load."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.serving.affinity import PictureAffinity

PICTURE_ROUTER = "serve_app.serving.picture_router.PictureRouter"
"""For `request_router_class`."""


class PictureRouter(RequestRouter):
    """The picture is the call's `session_id`; a call without one goes to the replica with the fewest requests.

    Loads are those that Serve's own routers use: what this process sent and has not got back, corrected by what
    replicas report.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._affinity = PictureAffinity()
        self._pending: dict[int, PendingRequest] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica per rank; without a picture all in one rank, from which Serve takes the least busy one."""
        if pending_request is None or not (picture := pending_request.metadata.session_id):
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        lengths = {name: self._replica_queue_len_cache.get(each.replica_id) or 0 for name, each in replicas.items()}
        order = self._affinity.order(picture, lengths)
        # At once, since the next view of the picture may be routed before this one is sent.
        self._affinity.remember(picture, order[0])
        return [[replicas[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if picture := pending_request.metadata.session_id:
            self._affinity.remember(picture, replica_id.unique_id)

    # Serve finds the request that a replica was chosen for by an id that all calls of one HTTP request share. Its FIFO
    # mixin gives the replica to the oldest request instead, whatever its picture.

    def _add_pending_request_to_indices(self, pending_request: PendingRequest) -> None:
        self._pending[id(pending_request.metadata)] = pending_request

    def _remove_pending_request_from_indices(self, pending_request: PendingRequest) -> None:
        self._pending.pop(id(pending_request.metadata), None)

    def _get_pending_request_matching_internal_request_id(self, request_metadata: Any = None) -> PendingRequest | None:
        found = self._pending.get(id(request_metadata))
        return None if found is None or found.future.done() else found
