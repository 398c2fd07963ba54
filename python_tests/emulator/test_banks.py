"""The emulator's count of what accesses cost the banks of shared memory, against counts made by hand."""

import numpy as np
import pytest

_planted = pytest.importorskip("bico_ext._planted", reason="needs a build with BICO_EMULATOR", exc_type=ImportError)

LANE = np.arange(32)
# Rows of 128 bytes, which is once around the banks: lane l accesses chunk l / 8 of row l % 8.
TILE = LANE % 8 * 128 + LANE // 8 * 16
SWIZZLED = LANE % 8 * 128 + (LANE // 8 ^ LANE % 8) * 16


def counts(name: str, *columns: np.ndarray, access: str, blocks: int = 1, **how) -> list[int]:
    """Requests, wavefronts and fewest wavefronts of a warp. All do the same, every other one 1024 bytes further on."""
    words = np.stack([np.broadcast_to(x, 64) for x in np.tile(columns, 2)], axis=-1).astype(np.uint32)
    words[32:, 0] += 1024
    banks = _planted.BankCounts()
    _planted.instruction(name, np.tile(words, (blocks, 1)), banks=banks, **how)
    requests, wavefronts, fewest = banks.table()[name][access]
    warps = 2 * blocks
    assert [requests % warps, wavefronts % warps, fewest % warps] == [0, 0, 0]
    return [requests // warps, wavefronts // warps, fewest // warps]


@pytest.mark.parametrize(
    ("name", "offsets", "wavefronts"),
    [
        pytest.param("load_4", 4 * LANE, 1, id="neighbours"),
        pytest.param("load_4", 0 * LANE, 1, id="one-word-for-all"),
        pytest.param("load_4", 8 * LANE, 2, id="stride-of-2"),
        pytest.param("load_4", 12 * LANE, 1, id="stride-of-3"),
        pytest.param("load_4", 32 * LANE, 8, id="stride-of-8"),
        pytest.param("load_4", 4 * (LANE % 16) + 128 * (LANE // 16), 2, id="halves-in-the-same-banks"),
        pytest.param("store_2", 2 * LANE, 1, id="two-lanes-to-a-word"),
        pytest.param("store_4", 4 * LANE, 1, id="neighbours"),
        pytest.param("store_4", 8 * LANE, 2, id="stride-of-2"),
    ],
)
def test_words(name, offsets, wavefronts):
    """All lanes are served together."""
    assert counts(name, offsets, access=name.split("_")[0]) == [1, wavefronts, 1]


@pytest.mark.parametrize("name", ["load_8", "store_8"])
@pytest.mark.parametrize(
    ("offsets", "wavefronts"),
    [
        pytest.param(8 * LANE, 2, id="neighbours"),
        pytest.param(16 * LANE, 4, id="every-other"),
        pytest.param(8 * (LANE % 16) + 128 * (LANE // 16), 2, id="halves-in-the-same-banks"),
        pytest.param(8 * (LANE % 8) + 128 * (LANE // 8), 4, id="quarters-in-the-same-banks"),
    ],
)
def test_8_bytes(name, offsets, wavefronts):
    """Half-warps are served one after the other."""
    assert counts(name, offsets, access=name.split("_")[0]) == [1, wavefronts, 2]


@pytest.mark.parametrize(
    ("name", "access"),
    [("load_16", "load"), ("store_16", "store"), ("copy_16", "cp.async"), ("load_matrices_at", "ldmatrix")],
)
@pytest.mark.parametrize(
    ("offsets", "wavefronts"),
    [
        pytest.param(16 * LANE, 4, id="neighbours"),
        pytest.param(32 * LANE, 8, id="every-other"),
        pytest.param(TILE, 32, id="column-of-a-tile"),
        pytest.param(SWIZZLED, 4, id="column-of-a-swizzled-tile"),
    ],
)
def test_16_bytes(name, access, offsets, wavefronts):
    """Quarter-warps are served one after the other, as are the matrices of ldmatrix."""
    columns = [offsets] if name != "copy_16" else [offsets, 0 * LANE, 0 * LANE, 0 * LANE]
    assert counts(name, *columns, access=access) == [1, wavefronts, 4]


def test_types_that_no_instruction_moves_at_once_are_several_requests():
    assert counts("load_three_words", 12 * LANE, access="load") == [3, 3, 3]
    assert counts("load_three_words", 24 * LANE, access="load") == [3, 6, 3]


SECOND_HALF = LANE // 16


def test_lanes_that_take_no_part_cost_nothing():
    assert counts("load_in_loop", 8 * LANE, SECOND_HALF, access="load") == [1, 1, 1]


# Where both halves take part in the same request, these are two wavefronts of one.
@pytest.mark.parametrize("name", ["load_in_branches", "load_in_iterations", "load_between_barriers"])
def test_lanes_apart_make_requests_of_their_own(name):
    assert counts(name, 8 * LANE, SECOND_HALF, access="load") == [2, 2, 2]
    assert counts(name, 8 * LANE, 0 * LANE, access="load") == [1, 2, 1]


def test_a_loop_makes_a_request_for_each_iteration():
    assert counts("load_in_loop", 8 * LANE, 1 + SECOND_HALF, access="load") == [2, 3, 2]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_depend_on_no_schedule_and_lose_nothing_between_blocks(seed):
    how = {"schedule": _planted.Schedule.random, "copies": _planted.Copies.at_wait, "seed": seed, "blocks": 50}
    assert counts("load_in_iterations", 8 * LANE, SECOND_HALF, access="load", **how) == [2, 2, 2]
    assert counts("load_matrices_at", TILE, access="ldmatrix", **how) == [1, 32, 4]


def test_launches_add_up_by_kernel_and_access():
    banks = _planted.BankCounts()
    assert banks.table() == {}
    for name, offsets in (("load_4", 8 * LANE), ("load_4", 4 * LANE), ("store_4", 4 * np.arange(64))):
        _planted.instruction(name, np.resize(offsets, (64, 1)).astype(np.uint32), banks=banks)
    filled = [2 * 2 * 8] * 3  # by two blocks of two warps, which clear 512 words each with 64 threads
    assert banks.table() == {"load_4": {"load": [4, 6, 4], "store": filled}, "store_4": {"store": [2, 2, 2]}}
