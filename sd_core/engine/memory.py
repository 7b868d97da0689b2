"""How much memory an image needs, predicted from its shape, and what running out looks like.

The predictions count the feature maps that are alive together at the worst moment of the eager
code; `tests/sd_core/engine/test_memory.py` compares them with what is really alive. Nothing here
imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd_core.spec import LATENT_FACTOR, ModelSpec, Shape, UNetSpec, VAESpec

_OUT_OF_MEMORY = (
    "out of memory",
    "enough memory",
    "can't allocate memory",
    "status_alloc_failed",  # of cuBLAS and cuDNN
    "unable to find an engine",  # of cuDNN, where no workspace fits
)

USABLE = 0.9
"""Share of a device's memory that is planned with; the rest is the allocator's and libraries'."""

# Maps alive at once, in multiples of a level's channels, as they were measured, rounded up. In a
# transformer block's feed-forward: the feature map and its skip, the tokens before and after the
# norm, the projection to 8 times the width, its gated halves of 4 times; the prompt's keys too.
_TRANSFORMER_MAPS = 26
# In a residual block: input with its skip concatenated (up to 3 widths), norm, activation, output.
_RESIDUAL_MAPS = 14
# In the decoder's last upsampling: its input at twice the width, enlarged, and the result.
_DECODER_MAPS = 5


def is_out_of_memory(error: BaseException) -> bool:
    """True if the device or the machine had no memory left: fewer images may still fit."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()  # torch's own class is a RuntimeError with such a text
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


def evaluation_bytes(spec: UNetSpec, shape: Shape, itemsize: int) -> int:
    """Activations of one row of an evaluation of the UNet, beside its weights.

    shape: (h, w) of the latent. itemsize: bytes of a number of the model's type.
    """
    skips, work = float(spec.channels), 0.0  # in maps of one channel at full latent size
    for level, mult in enumerate(spec.channel_mult):
        width, area = spec.channels * mult, 0.25**level
        skips += spec.num_res_blocks * width * area
        if level:
            skips += spec.channels * spec.channel_mult[level - 1] * area  # of the downsampling
        maps = _TRANSFORMER_MAPS if spec.attention_levels[level] else _RESIDUAL_MAPS
        work = max(work, maps * width * area)
    return round((skips + work) * shape[0] * shape[1] * itemsize)


def decode_bytes(spec: VAESpec, shape: Shape, itemsize: int) -> int:
    """Activations of decoding one image of this latent shape."""
    width = spec.channels * spec.channel_mult[min(1, len(spec.channel_mult) - 1)]
    pixels = shape[0] * shape[1] * LATENT_FACTOR**2
    return _DECODER_MAPS * width * pixels * itemsize


def prompt_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Keys and values of one prompt for all attentions of the UNet."""
    unet = spec.unet
    widths = [unet.channels * mult for mult in unet.channel_mult]
    # On the way down so many blocks a level, on the way up one more; and one in the middle.
    attended = [width for width, has in zip(widths, unet.attention_levels, strict=True) if has]
    width = (2 * unet.num_res_blocks + 1) * sum(attended) + widths[-1]
    return 2 * spec.text.length * width * itemsize


def room_for_adapters(total_bytes: int) -> int:
    """Bytes that adapters may take of a device's memory, where nothing else is said."""
    return min(2**30, total_bytes // 16)


@dataclass(frozen=True)
class Capacity:
    """Memory of a device beside the model's weights.

    device: for messages.
    total_bytes: of the device's memory.
    weights_bytes: of the model in it.
    itemsize: bytes of a number of the model's type.
    adapter_bytes: that adapters may take.
    prompts: how many are kept for later images.
    captured: evaluations are CUDA graphs, which keep their memory while images are decoded.
    """

    spec: ModelSpec
    device: str
    total_bytes: int
    weights_bytes: int
    itemsize: int
    adapter_bytes: int = 0
    prompts: int = 0
    captured: bool = False

    @property
    def free_bytes(self) -> int:
        prompts = self.prompts * prompt_bytes(self.spec, self.itemsize)
        return round(USABLE * self.total_bytes) - self.weights_bytes - prompts - self.adapter_bytes

    def rows(self, shape: Shape) -> int:
        """Rows of this latent shape that an evaluation has room for."""
        free = self.free_bytes - (self._decode_bytes(shape) if self.captured else 0)
        return max(0, free) // self._row_bytes(shape)

    def check(self, shape: Shape, rows: int) -> None:
        """Raises `MemoryError` if an image of so many rows cannot be rendered here at all."""
        evaluation, decode = rows * self._row_bytes(shape), self._decode_bytes(shape)
        needed = evaluation + decode if self.captured else max(evaluation, decode)
        if needed > self.free_bytes:
            height, width = (side * LATENT_FACTOR for side in shape)
            raise MemoryError(
                f"an image of {width}x{height} pixels needs about {needed / 2**30:.1f} GiB beside "
                f"the model; {self.device} has {max(0, self.free_bytes) / 2**30:.1f} GiB"
            )

    def _row_bytes(self, shape: Shape) -> int:
        """Bytes of a row of a batch: its activations, and its prompt."""
        evaluation = evaluation_bytes(self.spec.unet, shape, self.itemsize)
        return evaluation + prompt_bytes(self.spec, self.itemsize)

    def _decode_bytes(self, shape: Shape) -> int:
        return decode_bytes(self.spec.vae, shape, self.itemsize)
