"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str | None = None) -> str:
    """`1 image`, `2,000 images`. many: the noun's plural where that does not end with an s."""
    return f"{number:,} {agreeing(number, noun, many or f'{noun}s')}"


def agreeing(number: int, one: str, many: str) -> str:
    """The word that goes with the number, such as `was` or `were`."""
    return one if number == 1 else many
