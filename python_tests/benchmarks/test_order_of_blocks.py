"""The model of the deterministic backward, on cases that are counted by hand."""

import order_of_blocks
import pytest

FIRST_TO_LAST, LAST_TO_FIRST = range(2), range(1, -1, -1)


@pytest.mark.parametrize(
    ("slots", "key_tiles", "ordered", "count"),
    [
        (1, FIRST_TO_LAST, False, 6),  # each of the two blocks visits three tiles of queries
        (1, FIRST_TO_LAST, True, 6),  # one after the other, they wait for nothing
        (2, FIRST_TO_LAST, False, 3),
        (2, LAST_TO_FIRST, True, 3),  # at each tile the other block has just left
        (
            2,
            FIRST_TO_LAST,
            True,
            5,
        ),  # the second block adds to the last tile in step 3, then follows in the minus frame
    ],
)
def test_full_attention(slots, key_tiles, ordered, count):
    assert order_of_blocks.steps(1, 2, slots, False, key_tiles, ordered) == count


@pytest.mark.parametrize(("ordered", "count"), [(False, 2), (True, 3)])
def test_causal_attention_has_one_frame(ordered, count):
    """The first tile of keys is seen by both tiles of queries, the second one by its own, which comes after it."""
    assert order_of_blocks.steps(1, 2, 2, True, FIRST_TO_LAST, ordered) == count


def test_what_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["order_of_blocks.py", "--slots", "1"])
    order_of_blocks.main()
    printed = capsys.readouterr().out
    assert "512, 64, full: 1.00, 1.00\n" in printed  # blocks that run one after the other wait for nothing
