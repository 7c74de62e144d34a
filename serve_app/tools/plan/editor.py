"""An editor in simulated time: the engine's own scheduler, and costs in place of the model."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from serve_app.editor.engine.edit import Edit
from serve_app.editor.engine.scheduler import Scheduler
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Draft
from serve_app.editor.model.schedule import Schedule
from serve_app.edits.request import EditRequest, PreparedPicture, Sampling
from serve_app.edits.sizes import fit_area, output_size
from serve_app.tools.load.mix import LoadEdit
from serve_app.tools.plan.costs import Costs
from serve_app.tools.plan.setup import Setup

CACHED_PICTURES = 128
"""Encoded pictures of a megapixel in `latents_cache_bytes`."""

_NONE = torch.zeros(0)


@dataclass(frozen=True)
class Turn:
    """One round of the engine's loop: its end, and the edits whose pictures are done, each with its time."""

    ends_at: float
    done: tuple[tuple[LoadEdit, float], ...]


class SimulatedEditor:
    """Runs its edits turn after turn; the caller moves the clock and calls `turn` at the end of the last one.

    Attributes:
        edits: those that it has, waiting or begun.
        num_hits, num_encoded: pictures that were found encoded, or were not.
        num_served: edits that it has done.
    """

    def __init__(self, name: str, setup: Setup, costs: Costs, clock: Callable[[], float]) -> None:
        self.name = name
        self.edits: dict[Edit, LoadEdit] = {}
        self.num_hits = self.num_encoded = self.num_served = 0
        self.is_busy = self.is_leaving = False
        self._setup, self._costs, self._clock = setup, costs, clock
        self._scheduler = Scheduler(setup.max_pack_tokens, setup.max_paused_edits, setup.scheduling, clock)
        self._encoded: OrderedDict[int, None] = OrderedDict()

    def add(self, load_edit: LoadEdit) -> None:
        request, pictures = _request(load_edit, self._setup)
        edit = Edit(Ticket(request, pictures, submitted_at=self._clock()), None, request.sampling.num_inference_steps)
        self.edits[edit] = load_edit
        self._scheduler.add(edit)

    def turn(self) -> Turn | None:
        """Encode, step and decode as the engine's loop does; None if there is nothing to do."""
        pack = self._scheduler.next_pack()
        if not pack:
            return None
        now = self._clock()
        for edit in pack:
            if edit.draft is None:
                now += self._begin(edit)
        prompts = {edit: len(edit.ticket.request.prompts) for edit in pack}
        step_s = self._costs.step(edit.num_tokens // num for edit, num in prompts.items() for _ in range(num))
        now += step_s
        self._scheduler.count_step(pack, step_s)
        done = []
        for edit in pack:
            edit.started.index += 1
            if edit.started.done:
                now += self._costs.decode_token_s * edit.ticket.request.size.made.num_tokens
                done.append((self.edits.pop(edit), now))
                self._scheduler.remove(edit)
        self.num_served += len(done)
        return Turn(now, tuple(done))

    def _begin(self, edit: Edit) -> float:
        """Give it a draft; returns the seconds of its encoding."""
        load_edit, sampling = self.edits[edit], edit.ticket.request.sampling
        schedule = Schedule((0.0,) * sampling.num_inference_steps, (0.0,) * sampling.num_inference_steps)
        edit.draft = Draft(edit.ticket.request.size.made, schedule, sampling.true_cfg_scale, (), _NONE, _NONE)
        text_s = self._costs.text_s * self._setup.num_prompts(load_edit.kind)
        if load_edit.picture in self._encoded:
            self.num_hits += 1
            self._encoded.move_to_end(load_edit.picture)
            return text_s
        self.num_encoded += 1
        self._encoded[load_edit.picture] = None
        if len(self._encoded) > CACHED_PICTURES:
            self._encoded.popitem(last=False)
        return text_s + self._costs.encode_token_s * sum(self._setup.reference_tokens(load_edit.kind))


def _request(load_edit: LoadEdit, setup: Setup) -> tuple[EditRequest, tuple[PreparedPicture, ...]]:
    """What the scheduler reads of an edit: its steps, and the sizes of its pictures, which have no pixels."""
    kind = load_edit.kind
    size = fit_area(setup.sizes.vae_area_px, kind.reference.width / kind.reference.height)
    empty = np.broadcast_to(np.uint8(0), (size.height, size.width, 3))
    sampling = Sampling(num_inference_steps=kind.num_inference_steps, true_cfg_scale=kind.true_cfg_scale)
    output = output_size(kind.output.width, kind.output.height, kind.reference, setup.sizes)
    request = EditRequest(request_id=str(load_edit.number), prompt="", sampling=sampling, size=output)
    return request, (PreparedPicture(empty, empty),) * kind.references
