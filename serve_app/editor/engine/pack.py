"""A step while it is put together: which edits still fit into it."""

from collections import Counter
from collections.abc import Callable, Sequence

from serve_app.editor.engine.edit import Edit


class Pack:
    """The edits of one step.

    Args:
        budget: tokens of the step; an edit above it runs alone.
        begun: all edits that have begun; those that are not added pause.
        max_paused: of them; no edit begins beside more, but the first one of a client that has none.
        share: how many of some tokens a client may take.
        shares_begun: whether that limits edits that have begun, too.
    """

    def __init__(
        self,
        budget: int,
        begun: Sequence[Edit],
        max_paused: int,
        share: Callable[[str, int], int],
        *,
        shares_begun: bool,
    ) -> None:
        self.edits: list[Edit] = []
        self._budget = budget
        self._room = budget
        self._num_paused = len(begun)  # unless they are added
        self._clients = {edit.ticket.client for edit in begun}
        self._max_paused = max_paused
        self._share = share
        self._shares_begun = shares_begun
        self._taken = Counter[str]()

    def add(self, edit: Edit) -> None:
        """Let an edit run that may begin and fits."""
        self.edits.append(edit)
        self._room -= edit.num_tokens
        self._num_paused -= edit.draft is not None
        self._clients.add(edit.ticket.client)
        self._taken[edit.ticket.client] += edit.num_tokens

    def may_begin(self, edit: Edit) -> bool:
        """Whether it has begun, or may do so beside those that pause as far as is known."""
        is_allowed = self._num_paused <= self._max_paused or edit.ticket.client not in self._clients
        return edit.draft is not None or is_allowed

    def fits(self, edit: Edit) -> bool:
        """Whether the step and its client's part have room for it; always true of the first one."""
        return not self.edits or edit.num_tokens <= min(self._room, self._left_of_part(edit))

    def is_full_for(self, edit: Edit) -> bool:
        """Whether the step has no room for it, whatever its client's part is."""
        return bool(self.edits) and edit.num_tokens > self._room

    def _left_of_part(self, edit: Edit) -> int:
        taken = self._taken[edit.ticket.client]
        if not taken or (edit.draft is not None and not self._shares_begun):
            return self._budget
        return self._share(edit.ticket.client, self._budget) - taken
