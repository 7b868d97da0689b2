"""The demo model's world: flat shapes on flat backgrounds, drawn by code and named by captions.

Some (shape, colour, background) triples never occur in training; they are kept to judge with.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 128  # pixels, the demo model's native side
OVERSAMPLING = 4  # drawn this much larger, then averaged, for smooth edges

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 196),
    "yellow": (250, 212, 50),
    "purple": (132, 58, 170),
    "orange": (246, 132, 32),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
PLACES = ("left", "right", "top", "bottom")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below", "and")

OUTLINE = 6.0
"""Width of a hollow shape's outline in pixels."""

_CENTRE = SIZE / 2
_RADII = {None: (26, 40), "small": (17, 23), "large": (42, 50)}  # pixels, of the enclosing circle
_PAIR_RADII = {None: (20, 25), "small": (15, 18), "large": (25, 28)}


@dataclass(frozen=True)
class Item:
    """One shape: centre and radius of its enclosing circle in pixels; size and place as named."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two shapes on a background; `relation` says how the first lies to the second."""

    background: str
    items: tuple[Item, ...]
    relation: str | None = None


def held_out(shape: str, colour: str, background: str) -> bool:
    """True if this triple is kept out of training: about one in ten, every pair still seen."""
    colours = list(COLOURS)
    number = SHAPES.index(shape) * 7 + colours.index(colour) * 3 + colours.index(background)
    return number % 10 == 0


def held_out_triples() -> list[tuple[str, str, str]]:
    """All (shape, colour, background) triples that training never shows."""
    return [
        (shape, colour, background)
        for shape in SHAPES
        for colour in COLOURS
        for background in COLOURS
        if colour != background and held_out(shape, colour, background)
    ]


def random_scene(rng: random.Random) -> Scene:
    """A training scene: two shapes in two of five, and no held-out triple."""
    while True:
        scene = _pair(rng) if rng.random() < 0.4 else _single(rng)
        if not any(held_out(i.shape, i.colour, scene.background) for i in scene.items):
            return scene


def _colours(rng: random.Random, count: int) -> list[str]:
    return rng.sample(list(COLOURS), count)


def _single(rng: random.Random) -> Scene:
    background, colour = _colours(rng, 2)
    size = rng.choice((None, None, *SIZES))
    place = rng.choice((None, None, *PLACES))
    if place is not None and size == "large":
        place = None  # a large shape has no room to lie to one side
    radius = rng.uniform(*_RADII[size])
    if place is not None:
        radius = min(radius, 30.0)
    x = y = _CENTRE
    shift = SIZE / 2 - radius - rng.uniform(4, 9)
    wander = 4.0
    if place in ("left", "right"):
        x += -shift if place == "left" else shift
    elif place in ("top", "bottom"):
        y += -shift if place == "top" else shift
    x, y = x + rng.uniform(-wander, wander) * 0.6, y + rng.uniform(-wander, wander) * 0.6
    item = Item(rng.choice(SHAPES), colour, x, y, radius, size, place)
    return Scene(background, (item,))


def _pair(rng: random.Random) -> Scene:
    background, first, second = _colours(rng, 3)
    if rng.random() < 0.15:
        second = first
    relation = rng.choice(RELATIONS)
    # "and" leaves the arrangement open; the first shape named lies left or above.
    arranged = rng.choice(("left of", "above")) if relation == "and" else relation
    gap = rng.uniform(30, 33)
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[arranged]
    items = []
    for colour, sign in ((first, 1), (second, -1)):
        size = rng.choice((None, None, None, *SIZES))
        x = _CENTRE + sign * dx * gap + rng.uniform(-2, 2)
        y = _CENTRE + sign * dy * gap + rng.uniform(-2, 2)
        radius = rng.uniform(*_PAIR_RADII[size])
        items.append(Item(rng.choice(SHAPES), colour, x, y, radius, size))
    return Scene(background, tuple(items), relation)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of several ways to name the scene; the background is sometimes left unsaid."""
    words = [_noun(item) for item in scene.items]
    if scene.relation is None:
        place = scene.items[0].place
        text = words[0] + (f" {_placed(place, rng)}" if place else "")
    else:
        text = f"{words[0]} {scene.relation} {words[1]}"
    style = rng.random()
    if style < 0.70:
        stated = f"{scene.background} background"
        text += rng.choice((f" on {_article(stated)}", f" on {_article(stated)}", f", {stated}"))
    elif style < 0.80:
        text += f" on {scene.background}"
    elif style < 0.88:
        text = f"{scene.background} background, {text}"
    # otherwise the background goes unsaid
    if rng.random() < 0.1:
        text = rng.choice(("a picture of ", "a drawing of ", "an image of ")) + text
    return text


def _noun(item: Item) -> str:
    words = [w for w in (item.size, item.colour, item.shape) if w]
    return _article(" ".join(words))


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _placed(place: str, rng: random.Random) -> str:
    preposition = "on the" if place in ("left", "right") else rng.choice(("at the", "on the"))
    return f"{preposition} {place}"


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB image of size x size pixels."""
    canvas = size * OVERSAMPLING
    scale = canvas / SIZE
    image = Image.new("RGB", (canvas, canvas), COLOURS[scene.background])
    pen = ImageDraw.Draw(image)
    for item in scene.items:
        _draw_item(pen, item, scale, COLOURS[item.colour], COLOURS[scene.background])
    return image.reduce(OVERSAMPLING)


def draw_hollow(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene with outlines in place of shapes: what is inside of them is background."""
    canvas = size * OVERSAMPLING
    scale = canvas / SIZE
    image = Image.new("RGB", (canvas, canvas), COLOURS[scene.background])
    for item in scene.items:
        shape = Image.new("RGB", image.size)
        _draw_item(ImageDraw.Draw(shape), item, scale, (255, 255, 255), (0, 0, 0))
        whole = inside = shape.convert("L")
        for number in range(round(OUTLINE * scale)):
            inside = _shrunk(inside, diagonal=number % 2 == 0)
        image.paste(COLOURS[item.colour], mask=ImageChops.subtract(whole, inside))
    return image.reduce(OVERSAMPLING)


def _shrunk(mask: Image.Image, *, diagonal: bool) -> Image.Image:
    """A mask without the pixels at its edge. By turns with and without diagonal neighbours, an
    octagon is taken off all round.
    """
    if diagonal:
        return mask.filter(ImageFilter.MinFilter(3))
    neighbours = ((1, 0), (-1, 0), (0, 1), (0, -1))
    return functools.reduce(ImageChops.darker, [ImageChops.offset(mask, *n) for n in neighbours])


def _draw_item(
    pen: ImageDraw.ImageDraw,
    item: Item,
    scale: float,
    colour: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale

    def disc(radius: float, fill: tuple[int, int, int]) -> None:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def polygon(points: list[tuple[float, float]]) -> None:
        pen.polygon([(x + px * r, y + py * r) for px, py in points], fill=colour)

    if item.shape == "circle":
        disc(r * 0.92, colour)
    elif item.shape == "ring":
        disc(r * 0.95, colour)
        disc(r * 0.52, background)
    elif item.shape == "square":
        polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])
    elif item.shape == "triangle":
        polygon([(0, -0.95), (0.98, 0.80), (-0.98, 0.80)])
    elif item.shape == "star":
        polygon(_star_points())
    else:
        arm = 0.30
        pen.rectangle((x - arm * r, y - 0.92 * r, x + arm * r, y + 0.92 * r), fill=colour)
        pen.rectangle((x - 0.92 * r, y - arm * r, x + 0.92 * r, y + arm * r), fill=colour)


def _star_points() -> list[tuple[float, float]]:
    """Five outer and five inner corners, the first pointing up."""
    radii = (1.05, 0.43)
    return [
        (
            radii[n % 2] * math.sin(math.pi * n / 5),
            -radii[n % 2] * math.cos(math.pi * n / 5),
        )
        for n in range(10)
    ]
