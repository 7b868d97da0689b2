"""Changes that programs find beside them: for a while, at their place, on their thread."""

from __future__ import annotations

import threading

import torch

from sd_core.model.beside import beside, change


def test_a_change_is_made_at_its_place_on_its_thread_and_while_it_is_given():
    out, x = torch.zeros(3), torch.arange(3.0)

    def changed(place: str) -> list[float]:
        change(out, x, place)
        return out.tolist()

    assert changed("a") == [0, 0, 0]
    with beside({"a": torch.Tensor.add_}):
        assert changed("a") == [0, 1, 2]
        assert changed("b") == [0, 1, 2]
        with beside({}):
            assert changed("a") == [0, 1, 2]
        other = threading.Thread(target=changed, args=["a"])
        other.start()
        other.join()
        assert out.tolist() == [0, 1, 2]
        assert changed("a") == [0, 2, 4]
    assert changed("a") == [0, 2, 4]
