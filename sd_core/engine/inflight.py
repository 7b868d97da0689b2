"""Images in the engine: those that are being denoised, and those on their way out."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from sd_core.engine.adapters import LoraSet
from sd_core.engine.added import Added
from sd_core.engine.prompts import RowContext
from sd_core.engine.request import OnStep, Rendered, Request
from sd_core.engine.row_roles import RowRoles
from sd_core.engine.timesteps import Times
from sd_core.model.embeddings import Embeddings
from sd_core.sampling.guidance import Guide
from sd_core.sampling.samplers import evaluations
from sd_core.sampling.trajectory import Trajectory
from sd_core.spec import Shape
from sd_core.transfer import CopyOut


class Group(NamedTuple):
    """Images that may share a batch: of one latent shape, and apart or not, see below."""

    shape: Shape
    apart: bool = False


@dataclass(eq=False)
class InflightRequest:
    """A request on its way: waiting without a trajectory, then with one.

    state: what it is to be continued from.
    told_guidance: the model is told its guidance, so that rows have none.
    added: its own weights, which stay on the device until it ends. embeddings: of its prompts.
    contexts: for each condition what it is to every attention, the negative prompt's first.
    roles: of its rows, once it is started.
    apart: evaluated by the program for images with adapters, long prompts or changes such as
        FreeU, where the model is compiled; False until the image is started.
    exact: all evaluations so far gave the bits of the fixed row count.
    arrived: its number in the line, from 1.
    The other fields are those of `sd_core.engine.scheduler.InflightRequest`.
    """

    request: Request
    future: Future[Rendered]
    on_step: OnStep | None
    state: bytes | None = None
    told_guidance: bool = False
    added: Added = field(default_factory=Added)
    embeddings: Embeddings = ()
    trajectory: Trajectory | None = None
    contexts: list[RowContext] = field(default_factory=list)
    roles: RowRoles = field(default_factory=RowRoles)
    admitted: float = 0.0
    apart: bool = False
    exact: bool = True
    started: bool = False
    times_bypassed: int = 0
    arrived: int = 0

    @cached_property
    def evaluated(self) -> Request:
        """The request with the guidance that is left to its rows."""
        if not self.told_guidance:
            return self.request
        return unguided(self.request)

    @property
    def loras(self) -> LoraSet | None:
        return self.added.loras

    @property
    def decoded_as(self) -> tuple[object, ...]:
        """The same for images that may be decoded together."""
        return self.shape, self.request.exact, self.added.vae

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def shape(self) -> Shape:
        return self.request.sampling.latent_shape

    @property
    def group(self) -> Group:
        return Group(self.shape, self.apart)

    @property
    def rows(self) -> int:
        """Rows of the next evaluation; before the first the most that it may take."""
        request, trajectory = self.evaluated, self.trajectory
        if trajectory is None or trajectory.done or trajectory.guided_now:
            return request.rows
        # What weighted prompts come to is told from the negative prompt, guided or not.
        return 1 if request.one_prompt else len(request.conditions)

    @property
    def guide(self) -> Guide | None:
        """Changes to the guided output of the next evaluation."""
        sampling = self.evaluated.sampling
        return self.flying.guide(sampling.guidance_rescale, sampling.thresholding)

    @property
    def told(self) -> list[RowContext]:
        """The contexts of the rows of the next evaluation."""
        prompts = self.contexts[-len(self.request.prompts) :]
        return [*prompts, *self.contexts][-self.rows :]

    @property
    def step(self) -> int:
        """The step that the next evaluation belongs to, from 1."""
        trajectory = self.flying
        return int(trajectory.table.steps[trajectory.position])

    @property
    def times(self) -> Times:
        """The timesteps of a flight that was started."""
        guidance = self.request.sampling.guidance if self.told_guidance else 1.0
        return Times.of(self.flying.table, self.loras, guidance)

    @property
    def left(self) -> int:
        """Evaluations to go."""
        if self.trajectory is not None:
            return len(self.trajectory.table) - self.trajectory.position
        sampling = self.request.sampling
        return evaluations(
            sampling.sampler, sampling.steps, _strength(self.request), sampling.strength_rule
        )

    @property
    def flying(self) -> Trajectory:
        """The trajectory of a flight that was started."""
        if self.trajectory is None:
            raise RuntimeError("a flight without a trajectory is still waiting")
        return self.trajectory


def unguided(request: Request) -> Request:
    """The request where a model is told its guidance. Raises `ValueError` for settings of guidance
    that it cannot have.
    """
    asked = request.sampling
    sampling = replace(asked, guidance=1.0)
    for name in ("apg", "guidance_rescale", "guidance_from", "guidance_to"):
        if getattr(sampling, name) != getattr(asked, name):
            raise ValueError(
                f"{name} {getattr(asked, name)} does not go with a model that is told its guidance"
            )
    return replace(request, sampling=sampling)


@dataclass
class PendingOutput:
    """Decoded images on their way to the CPU.

    copy: for each flight its pixels (H, W, 3) uint8, whether these are of finite numbers, and its
    latents.
    """

    flights: list[InflightRequest]
    copy: CopyOut


def _strength(request: Request) -> float | None:
    return None if request.init_image is None else request.sampling.strength
