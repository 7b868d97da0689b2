"""Row counts, and how they follow the memory there is."""

from __future__ import annotations

from sd_core.engine.batch_rows import (
    CHECKS,
    FAST_ROWS,
    MOST_ROWS,
    RECOVER_AFTER,
    Rows,
    batch_rows,
)

SHAPE = (16, 16)
V1 = (64, 64)


def test_row_counts_are_even_and_bounded():
    assert batch_rows("cpu", (64, 64)) == 2
    assert batch_rows("cpu", (16, 16)) == 16
    assert batch_rows("cpu", (128, 128)) == 2


def test_exact_batches_are_padded_to_one_count_and_fast_ones_to_the_next():
    rows = Rows("cuda", lambda shape: 16)
    assert {rows.padded(SHAPE, used, exact=True) for used in range(1, 17)} == {16}
    padded = [rows.padded(SHAPE, used, exact=False) for used in range(1, 17)]
    assert set(padded) == set(FAST_ROWS["cuda"])
    assert all(count >= used for used, count in enumerate(padded, start=1))
    assert Rows("cuda", lambda shape: 6).padded(SHAPE, 5, exact=False) == 6
    assert Rows("cpu", lambda shape: 16).padded(SHAPE, 5, exact=False) == 5


def test_compiled_models_see_one_count_only():
    rows = Rows("cuda", lambda shape: 16, static=True)
    assert {rows.padded(SHAPE, used, exact=False) for used in range(1, 17)} == {16}
    assert {rows.padded_decode(V1, used, exact=False) for used in range(1, 5)} == {4}
    eager = Rows("cuda", lambda shape: 16)
    assert [eager.padded_decode(V1, 2, exact=exact) for exact in (False, True)] == [2, 4]


class TestChecked:
    """Counts that gave the bits of the fixed one serve exact images, too."""

    def test_a_count_serves_once_it_was_the_same_often_enough(self):
        rows = Rows("cpu", lambda shape: 16)
        for _ in range(CHECKS):
            assert rows.padded(SHAPE, 6, exact=True) == 16
            assert not rows.gives_exact(SHAPE, 6)
            assert rows.unchecked(SHAPE, 6) == 6
            rows.checked(SHAPE, 6, same=True)
        assert rows.padded(SHAPE, 6, exact=True) == 6
        assert rows.gives_exact(SHAPE, 6)
        assert rows.unchecked(SHAPE, 6) is None
        assert rows.padded(SHAPE, 5, exact=True) == 16
        assert rows.padded(V1, 6, exact=True) == 16

    def test_a_count_that_differed_once_never_serves(self):
        rows = Rows("cpu", lambda shape: 16)
        rows.checked(SHAPE, 6, same=True)
        rows.checked(SHAPE, 6, same=False)
        assert rows.unchecked(SHAPE, 6) is None
        assert rows.padded(SHAPE, 6, exact=True) == 16
        assert rows.padded(SHAPE, 6, exact=False) == 6

    def test_a_gpu_checks_its_few_counts_and_compiled_models_none(self):
        rows = Rows("cuda", lambda shape: 16)
        assert [rows.unchecked(SHAPE, used) for used in (1, 3, 5, 9, 13, 16)] == [
            *(1, 4, 8, 12, None, None)
        ]
        assert Rows("cuda", lambda shape: 16, static=True).unchecked(SHAPE, 2) is None


def test_large_images_are_decoded_in_less_company():
    rows = Rows("cuda", lambda shape: 2)
    assert [rows.decoded((side, side)) for side in (16, 64, 80, 96, 128, 256)] == [4, 4, 2, 1, 1, 1]
    assert Rows("cpu", lambda shape: 2).decoded(V1) == 1


def test_more_rows_than_any_fixed_count():
    rows = Rows("cuda", lambda shape: 32)
    assert [rows.padded(SHAPE, used, exact=False) for used in (16, 17, 32)] == [16, 32, 32]


def test_what_is_left_beside_parts_of_the_fixed_count_is_checked_by_itself():
    rows = Rows("cpu", lambda shape: 2)
    assert [rows.padded(SHAPE, used, exact=True) for used in (4, 5, 17)] == [4, 6, 18]
    assert [rows.padded(SHAPE, used, exact=False) for used in (4, 5, 17)] == [4, 5, 17]
    assert [rows.unchecked(SHAPE, used) for used in (4, 5, 17)] == [None, 1, 1]
    for _ in range(CHECKS):
        rows.checked(SHAPE, 1, same=True)
    assert [rows.padded(SHAPE, used, exact=True) for used in (4, 5, 17)] == [4, 5, 17]
    assert rows.unchecked(SHAPE, 5) is None


def test_every_count_is_reached_on_every_device():
    assert {counts[-1] for counts in FAST_ROWS.values()} == {MOST_ROWS}


def test_rows_are_halved_when_memory_runs_out_and_come_back():
    rows = Rows("cpu", lambda shape: 16)
    assert rows.limit(SHAPE, 16) == 16
    assert rows.ran_out(SHAPE, 16)
    assert rows.ran_out(SHAPE, 8)
    assert rows.limit(SHAPE, 16) == 4
    assert rows.limit((8, 8), 16) == 16  # other shapes are not concerned
    counts = []
    for _ in range(10 * RECOVER_AFTER):
        rows.went_well(SHAPE)
        counts.append(rows.limit(SHAPE, 16))
    assert counts[-1] == 16
    assert sorted(counts) == counts
    # It ran out twice, so the second try comes later than the first would have.
    assert counts.index(8) + 1 == 2 * RECOVER_AFTER


def test_one_row_that_does_not_fit_is_the_end():
    assert not Rows("cpu", lambda shape: 2).ran_out(SHAPE, 1)
