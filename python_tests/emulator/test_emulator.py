"""The emulator of the CUDA kernels: it catches what must not be, and its instructions do what PTX says they do."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from bico_ext import _C

_planted = pytest.importorskip("bico_ext._planted", reason="needs a build with BICO_EMULATOR", exc_type=ImportError)
Schedule, Copies = _planted.Schedule, _planted.Copies

SCHEDULES = [(Schedule.round_robin, 0), *((Schedule.random, seed) for seed in (1, 2, 3))]
every_schedule = pytest.mark.parametrize(("schedule", "seed"), SCHEDULES, ids=lambda x: getattr(x, "name", str(x)))
every_arrival = pytest.mark.parametrize("copies", [Copies.at_issue, Copies.at_wait], ids=lambda x: x.name)

# Of each kernel: its results, from the numbers 0 to 255 in `IN`, and what its planted bug is found as.
IN = np.arange(256.0)
SQUARE = (IN.reshape(16, 16) @ IN.reshape(16, 16)).ravel()
NEXT = np.roll(IN[:64], -1)
PAIRED = IN[:64].reshape(32, 2)[:, ::-1].ravel()
OTHER_WARP = np.roll(IN[:64], 32)
OF_LANE_7 = np.repeat([7.0, 39.0], 32)
RACE = r"(reads what thread \d+ wrote|writes what thread \d+ reads), with no barrier between"
UNFINISHED = "reads what is still being copied: its thread has not waited for the copy"
WRONG = {
    "read_without_barrier": (NEXT, RACE),
    "overwrite_without_barrier": (NEXT, RACE),
    "overwrite_by_last_lane": (np.repeat([0.0, 32.0], 32), RACE),
    "two_writers": (IN[:64], r"writes where thread \d+ wrote, with no barrier between"),
    "no_barrier_within_warp": (PAIRED, RACE),
    "sync_warp_between_warps": (OTHER_WARP, RACE),
    "skipped_barrier": (
        IN[:64],
        "deadlock: .*; 1 threads, among them 5, have ended; 63 threads, among them 0, wait for sync_threads",
    ),
    "exit_before_barrier": (
        IN[:64],
        "deadlock: .*; 1 threads, among them 5, have ended; 63 threads, among them 0, wait for sync_threads",
    ),
    "barriers_of_two_kinds": (
        IN[:64],
        "by sync_threads of 64 threads where others came by sync_threads_or of 64"
        "|by sync_threads_or of 64 threads where others came by sync_threads of 64",
    ),
    "named_barrier_of_two_counts": (
        IN[:64],
        "by sync_named of 32 threads where others came by sync_named of 64"
        "|by sync_named of 64 threads where others came by sync_named of 32"
        r"|deadlock: .*; 32 threads, among them \d+, wait for sync_named",
    ),
    "named_barriers_mixed_up": (IN[:64], "deadlock: .*; 64 threads, among them 0, wait for sync_named"),
    "named_barrier_of_half_warps": (
        IN[:64],
        "completes a barrier by sync_named to which only 16 lanes of warp [01] have come",
    ),
    "named_barrier_of_no_number": (IN[:64], "names barrier 16 for 64 threads"),
    "producer_and_consumer": (IN[:128].reshape(4, 32)[:, ::-1].ravel(), RACE),
    "copy_not_waited_for": (IN[::4], UNFINISHED),
    "copy_not_committed": (IN[::4], UNFINISHED),
    "copy_of_another_group": (IN[::4], UNFINISHED),
    "copied_without_barrier": (IN[::4][NEXT.astype(int)], RACE),
    "barrier_before_the_wait": (np.full(64, 252.0), f"{RACE}|{UNFINISHED}"),
    "copy_over_what_is_read": (NEXT, RACE),
    "store_where_a_copy_arrives": (IN[:64], "writes where a copy is still under way"),
    "copy_pending_at_the_end": (IN[:64], "ends while its copies are still under way"),
    "copy_of_too_many_bytes": (np.full(64, 3.0), "copies 20 bytes, which must be 0 to 16"),
    "divergent_collectives": (
        OF_LANE_7,
        "comes to (shuffle while other lanes of its warp are at ballot|ballot while .* at shuffle)",
    ),
    "shuffle_of_some_lanes": (OF_LANE_7, "deadlock: .*32 threads, among them 0, wait for shuffle"),
    "shuffle_for_sync_warp": (PAIRED, RACE),
    "shared_write_past_the_end": (IN[:64], "writes bytes 2048 to 2052 of 2048 of shared memory"),
    "shared_read_past_the_end": (IN[:64], "reads bytes 2048 to 2052 of 2048 of shared memory"),
    "shared_read_of_nothing": (NEXT, "reads shared memory that was never written .byte 20,"),
    "misaligned_store": (IN[:64], "writes at byte 4, which is no multiple of 16"),
    "misaligned_matrix_row": (IN[:64], r"reads at byte (140|652), which is no multiple of 16"),
    "misaligned_copy_to_shared": (IN[:64], "writes at byte 8, which is no multiple of 16"),
    "misaligned_copy_from_global": (IN[:64], "copies from an address that is no multiple of 16"),
}
# No violation, but wrong results.
WRONG_RESULTS = {"swapped_quarters_of_left_operand": SQUARE, "right_operand_not_transposed": SQUARE}
# AddressSanitizer sees these, and ends the process.
PAST_GLOBAL = {"global_write_past_the_end": IN[:64]}

RESULTS = {**{name: results for name, (results, _) in WRONG.items()}, **WRONG_RESULTS, **PAST_GLOBAL}


def test_every_kernel_is_tested():
    assert sorted(_planted.names()) == sorted(RESULTS)


@every_arrival
@every_schedule
@pytest.mark.parametrize("name", RESULTS)
def test_correct_kernels_run(name, schedule, copies, seed):
    assert _planted.run(name, False, schedule, copies, seed) == RESULTS[name].tolist()


@every_arrival
@every_schedule
@pytest.mark.parametrize("name", WRONG)
def test_planted_bugs_are_found(name, schedule, copies, seed):
    with pytest.raises(_planted.Violation, match=f"^kernel {name}, block 0, thread .*({WRONG[name][1]})"):
        _planted.run(name, True, schedule, copies, seed)


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_fragments_in_the_wrong_order_give_wrong_results(name):
    results = np.array(_planted.run(name, True, Schedule.round_robin, Copies.at_issue, 0))
    assert np.isfinite(results).all()
    assert (results != RESULTS[name]).mean() > 0.5


@pytest.mark.skipif(not _C.sanitized, reason="needs AddressSanitizer, a build with BICO_SANITIZE")
@pytest.mark.parametrize("name", PAST_GLOBAL)
def test_writes_past_global_arrays_end_the_process(name):
    program = f"from bico_ext import _planted as p; p.run({name!r}, True, p.Schedule.round_robin, p.Copies.at_issue, 0)"
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "WRITE of size 4" in result.stderr


# Instructions against the tables of the PTX ISA, where i counts the elements that a thread holds, two to a register,
# the first one in its lower half.


def fragment_a() -> Iterator[tuple[int, int, int, int]]:
    """mma.m16n8k16, the left operand [16, 16]: lane, i, row, column."""
    for lane in range(32):
        group, thread_in_group = lane >> 2, lane % 4
        for i in range(8):
            row = group if i in (0, 1, 4, 5) else group + 8
            yield lane, i, row, thread_in_group * 2 + (i & 1) + (0 if i < 4 else 8)


def fragment_b() -> Iterator[tuple[int, int, int, int]]:
    """The right operand [16, 8]."""
    for lane in range(32):
        group, thread_in_group = lane >> 2, lane % 4
        for i in range(4):
            yield lane, i, thread_in_group * 2 + (i & 1) + (0 if i < 2 else 8), group


def fragment_c() -> Iterator[tuple[int, int, int, int]]:
    """The sums [16, 8], each in a register of its own."""
    for lane in range(32):
        group, thread_in_group = lane >> 2, lane % 4
        for i in range(4):
            yield lane, i, group if i < 2 else group + 8, thread_in_group * 2 + (i & 1)


def held(matrices: np.ndarray, fragment: Callable[[], Iterator[tuple[int, int, int, int]]]) -> np.ndarray:
    """What the lanes hold of matrices [n, rows, columns]: [n, 32, elements]."""
    _, _, rows, columns = np.array(list(fragment())).T
    return matrices[:, rows, columns].reshape(len(matrices), 32, -1)


def bits_of(x: np.ndarray | torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """Numbers rounded to 16-bit ones, as their bits."""
    return torch.as_tensor(x).to(dtype).view(torch.int16).numpy().view(np.uint16)


def words(*columns: np.ndarray) -> np.ndarray:
    """Rows of 32-bit words: floats and 16-bit halves side by side, as what they are in memory."""
    return np.concatenate([np.ascontiguousarray(x).view(np.uint32) for x in columns], axis=-1)


def small_numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_multiply_add(dtype):
    # Each element of either operand alone, then all at once; small whole numbers are exact in every type.
    one_a, one_b = np.eye(256).reshape(-1, 16, 16), np.eye(128).reshape(-1, 16, 8)
    all_a, all_b = np.arange(256.0).reshape(16, 16), np.arange(128.0).reshape(16, 8) - 60
    a = np.concatenate([one_a, np.broadcast_to(all_a, (128, 16, 16)), small_numbers((16, 16, 16))])
    b = np.concatenate([np.broadcast_to(all_b, (256, 16, 8)), one_b, small_numbers((16, 16, 8), seed=1)])
    c = np.arange(len(a) * 128.0).reshape(-1, 16, 8)
    given = words(
        bits_of(held(a, fragment_a), dtype), bits_of(held(b, fragment_b), dtype), held(c, fragment_c).astype(np.float32)
    )
    got = _planted.instruction(f"multiply_add_{str(dtype)[6:]}", given.reshape(-1, 10)).view(np.float32)
    np.testing.assert_array_equal(got.reshape(-1, 32, 4), held(a @ b + c, fragment_c))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_load_matrices(transposed):
    """ldmatrix.x4: threads 8 m to 8 m + 7 give the rows of matrix m; register m of lane l is of row l / 4 of it."""
    stored = np.arange(2 * 32 * 8, dtype=np.uint16).reshape(2, 32, 8)  # a row of each thread of two warps
    owner = np.stack([np.random.default_rng(warp).permutation(32) for warp in range(2)])
    given = words(stored.view(np.uint32), owner[..., None].astype(np.uint32)).reshape(64, 5)
    got = _planted.instruction("load_matrices" + "_transposed" * transposed, given).view(np.uint16).reshape(2, 32, 4, 2)
    for warp in range(2):
        matrices = stored[warp][owner[warp]].reshape(4, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 2, 1)
        for lane in range(32):
            for m in range(4):
                first = lane % 4 * 2
                assert got[warp, lane, m].tolist() == matrices[m, lane // 4, first : first + 2].tolist()


def test_shuffles():
    random = np.random.default_rng(0)
    x, lanes = random.integers(0, 2**32, (64, 2, 32), dtype=np.uint32), random.integers(0, 32, (64, 2, 32))
    got = _planted.instruction("shuffle", words(*(y.astype(np.uint32).reshape(-1, 1) for y in (x, lanes))))
    np.testing.assert_array_equal(got.reshape(x.shape), np.take_along_axis(x, lanes, axis=-1))

    masks = np.broadcast_to(np.arange(64)[:, None, None] % 32, x.shape)
    got = _planted.instruction("shuffle_xor", words(*(y.astype(np.uint32).reshape(-1, 1) for y in (x, masks))))
    np.testing.assert_array_equal(got.reshape(x.shape), np.take_along_axis(x, masks ^ np.arange(32), axis=-1))


def test_ballot():
    said = np.random.default_rng(0).integers(0, 2, (32, 32))
    got = _planted.instruction("ballot", said.astype(np.uint32).reshape(-1, 1)).reshape(32, 32)
    np.testing.assert_array_equal(got, np.broadcast_to((said << np.arange(32)).sum(axis=1)[:, None], (32, 32)))


def test_lowest_bit():
    places = np.arange(64) % 32
    higher = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint64)
    given = ((higher << 1 | 1) << places.astype(np.uint64)).astype(np.uint32)
    np.testing.assert_array_equal(_planted.instruction("lowest_bit", given[:, None])[:, 0], places)


def test_count_bits():
    given = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    given[:2] = 0, 2**32 - 1
    counts = [bin(x).count("1") for x in given]
    np.testing.assert_array_equal(_planted.instruction("count_bits", given[:, None])[:, 0], counts)


def test_sync_threads_or():
    said = np.concatenate([np.eye(64), np.zeros((1, 64)), np.ones((1, 64))])  # a block each
    got = _planted.instruction("sync_threads_or", said.astype(np.uint32).reshape(-1, 1)).reshape(said.shape)
    np.testing.assert_array_equal(got, np.broadcast_to(said.any(axis=1)[:, None], said.shape))


@every_arrival
@every_schedule
def test_copy_async(schedule, copies, seed):
    data = np.arange(1, 17, dtype=np.uint8) + 16 * (np.arange(64, dtype=np.uint8) % 15)[:, None]
    count = np.arange(64) % 17
    given = words(data, count[:, None].astype(np.uint32), np.zeros((64, 3), dtype=np.uint32))
    got = _planted.instruction("copy_async", given, schedule, copies, seed).view(np.uint8)
    np.testing.assert_array_equal(got, np.where(np.arange(16) < count[:, None], data, 0))


def hard_to_round(dtype: torch.dtype) -> np.ndarray:
    """float32 numbers around those of a 16-bit type: itself, the tie between it and the next, and beside the tie."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).double().numpy()
    finite = np.unique(every[np.isfinite(every) & (every >= 0)])
    overflow = 2 * finite[-1] - finite[-2]  # where the next number would be
    ties = (finite + np.append(finite[1:], overflow)) / 2
    exact = np.concatenate([finite[::13], ties[::13], finite[-9:], ties[-9:], [overflow, finite[-1] * 1.001]])
    with np.errstate(over="ignore"):
        x = np.concatenate([exact, -exact]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    special = np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38], dtype=np.float32)
    near_zero = np.ldexp(np.arange(1, 999, dtype=np.float32), -27 if dtype == torch.float16 else -136)  # denormals
    nan = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, special, nan, near_zero, -near_zero])
    return np.append(x, np.zeros(-len(x) % 64, dtype=np.float32))


def assert_rounded(got: np.ndarray, x: np.ndarray, dtype: torch.dtype) -> None:
    """A NaN has many bit patterns."""
    number = torch.from_numpy(got.astype(np.uint16).view(np.int16)).view(dtype)
    np.testing.assert_array_equal(number.isnan().numpy(), np.isnan(x))
    np.testing.assert_array_equal(got[~np.isnan(x)], bits_of(x, dtype)[~np.isnan(x)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_narrow_pack_and_widen(dtype):
    name = str(dtype)[6:]
    low = hard_to_round(dtype)
    high = np.roll(low, 5)
    assert_rounded(_planted.instruction(f"narrow_{name}", words(low[:, None]))[:, 0], low, dtype)
    packed = _planted.instruction(f"pack_{name}", words(low[:, None], high[:, None]))[:, 0]
    assert_rounded(packed & 0xFFFF, low, dtype)
    assert_rounded(packed >> 16, high, dtype)

    every = np.arange(2**16, dtype=np.uint16)
    wide = torch.from_numpy(every.view(np.int16)).view(dtype).float().numpy()
    got = _planted.instruction(f"widen_{name}", every.astype(np.uint32)[:, None])[:, 0].view(np.float32)
    np.testing.assert_array_equal(got, wide)  # NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wide))


def test_reciprocal_approximate():
    x = np.concatenate([sign * np.geomspace(2.0**-126, 2.0**126, 3200) for sign in (-1, 1)]).astype(np.float32)
    got = _planted.instruction("reciprocal_approximate", words(x[:, None]))[:, 0].view(np.float32)
    exact = 1 / x.astype(np.float64)
    ulp = np.exp2(np.floor(np.log2(np.abs(exact))) - 23)
    assert (np.abs(got - exact) <= ulp).all()

    flushed = np.full(64, 2.0**127, np.float32)
    flushed[1], flushed[2:] = -(2.0**-127), np.inf
    got = _planted.instruction("reciprocal_approximate", words(flushed[:, None]))[:, 0].view(np.float32)
    np.testing.assert_array_equal(got[:3], [0, -np.inf, 0])


def test_exp2_approximate():
    x = np.append(np.linspace(-160, 135, 6395), [-np.inf, np.inf, np.nan, 1e-45, -126]).astype(np.float32)
    got = _planted.instruction("exp2_approximate", words(x[:, None]))[:, 0].view(np.float32)
    exact = np.exp2(x.astype(np.float64))
    normal = (x >= -126) & (x < 128)
    ulp = np.exp2(np.floor(np.log2(exact[normal])) - 23)
    assert (np.abs(got[normal] - exact[normal]) <= 2 * ulp).all()
    assert (got[x < -126] == 0).all()  # would be denormal
    assert (got[x >= 128] == np.inf).all()
    assert np.isnan(got[np.isnan(x)]).all()
