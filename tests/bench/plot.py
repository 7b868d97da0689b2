"""Lines over two logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 820, 520
LEFT, TOP, RIGHT, BOTTOM = 70, 20, 150, 50  # margins
COLOURS = ("#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#d35400", "#16a085", "#7f8c8d")
DASHES = ("", "6 3")


def plot(lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """SVG of lines of (evaluations, error). Their names stand beside their ends."""
    points = [point for line in lines.values() for point in line]
    x_range = math.log10(min(x for x, _ in points)), math.log10(max(x for x, _ in points))
    y_range = (
        math.floor(math.log10(min(y for _, y in points))),
        math.ceil(math.log10(max(y for _, y in points))),
    )

    def place(value: float, ends: tuple[float, float], start: float, end: float) -> float:
        return start + (math.log10(value) - ends[0]) / (ends[1] - ends[0]) * (end - start)

    def x_of(value: float) -> float:
        return place(value, x_range, LEFT, WIDTH - RIGHT)

    def y_of(value: float) -> float:
        return place(value, y_range, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for exponent in range(int(y_range[0]), int(y_range[1]) + 1):
        y = y_of(10.0**exponent)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>'
        )
    for count in (3, 5, 10, 20, 50, 100, 150):
        if x_range[0] <= math.log10(count) <= x_range[1]:
            x = x_of(count)
            parts.append(
                f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>'
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{count}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">evaluations</text>')
    parts.append(
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "relative error of the latents</text>"
    )
    ordered = sorted(lines, key=lambda name: -lines[name][-1][1])
    heights = _apart([y_of(lines[name][-1][1]) for name in ordered])
    for number, (name, height) in enumerate(zip(ordered, heights, strict=True)):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in lines[name])
        end_x, end_y = x_of(lines[name][-1][0]), y_of(lines[name][-1][1])
        label = WIDTH - RIGHT + 16
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            f'stroke-dasharray="{dash}"/>'
            f'<path d="M{end_x:.1f} {end_y:.1f}L{label - 4} {height:.1f}" stroke="{colour}" '
            'stroke-width="0.5"/>'
            f'<text x="{label}" y="{height + 4:.1f}" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _apart(heights: Sequence[float], least: float = 15.0) -> list[float]:
    """Falling heights, so far apart that texts there do not meet."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + least) if found else height)
    over = max(0.0, found[-1] - (HEIGHT - BOTTOM)) if found else 0.0
    return [height - over for height in found]
