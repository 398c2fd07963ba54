"""What is asked of the CUDA kernels beyond the op's numbers, under the emulator: order, devices, bad offsets, banks."""

import pytest
import torch
from problems import Case, assert_as_good_as_torch, make_problem

pytest.importorskip("bico_ext._emulator", reason="needs a build with BICO_EMULATOR", exc_type=ImportError)
emulated = pytest.importorskip("emulated")
_emulator = emulated._emulator
import count_bank_conflicts  # noqa: E402 (imports the emulator)

LONG = Case("long", S=400, Hq=2, Hkv=1, D=32, B=1, spans="infill")


def run(problem, dtype=torch.bfloat16, **how):
    attention = emulated.attention(how.pop("schedule", "random"), how.pop("copies", "at-wait"), **how)
    return problem.run(attention, dtype, table_dtype=torch.float32)


def test_deterministic_sums_do_not_depend_on_the_schedule():
    problem = make_problem(LONG, torch.bfloat16)
    first = run(problem, seed=1)
    for how in ({"seed": 2}, {"seed": 3}, {"schedule": "round-robin", "copies": "at-issue"}):
        again = run(problem, **how)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_sums_differ_in_the_order_of_grad_q_alone():
    problem = make_problem(LONG, torch.bfloat16)
    ordered, free = run(problem, seed=1), [run(problem, seed=seed, deterministic=False) for seed in range(4)]
    for name in ("out", "lse", "grad_k", "grad_v"):
        assert all(torch.equal(ordered[name], one[name]) for one in free), name
    for one in free:
        torch.testing.assert_close(one["grad_q"], ordered["grad_q"], rtol=2**-7, atol=1e-3)


@pytest.fixture
def set_device():
    """Of other limits than the emulator's own."""
    yield _emulator.set_device
    _emulator.set_device()


@pytest.mark.parametrize("spans", ["placeholders", "causal"])
@pytest.mark.parametrize(("multiprocessors", "parts"), [(1, 1), (3, 2), (8, 3), (132, 6)])
def test_a_group_is_split_until_its_blocks_fill_the_device(multiprocessors, parts, spans, set_device, monkeypatch):
    """Three tiles of keys, 2 blocks on a multiprocessor, and 6 query heads that share them."""
    problem = make_problem(Case("group", S=130, Hq=6, Hkv=1, D=32, R=24, B=1, spans=spans), torch.bfloat16)
    workspaces = []

    def backward(arguments, **how):
        workspaces.append(_backward(arguments, **how))

    _backward = _emulator.backward
    monkeypatch.setattr(_emulator, "backward", backward)
    set_device(multiprocessors=1)
    whole = run(problem)
    set_device(multiprocessors=multiprocessors)
    got = run(problem)
    gradient = 192 * 32 * 4  # bytes; of k and of v, of each part if there are several
    assert workspaces[1] - workspaces[0] == (parts > 1) * 2 * parts * gradient
    assert_as_good_as_torch(emulated.attention("random", "at-wait", seed=1), problem, torch.bfloat16)
    assert all(torch.equal(got[name], whole[name]) for name in ("out", "lse", "grad_q"))
    again = run(problem, seed=3, schedule="round-robin")
    assert all(torch.equal(got[name], again[name]) for name in got)


H100, A100, RTX = 228, 164, 100  # KiB of shared memory on a multiprocessor


@pytest.mark.parametrize(
    ("head_dim", "kib", "stages"),
    [(64, H100, 2), (128, H100, 2), (64, A100, 2), (128, A100, 1), (256, A100, 1), (64, RTX, 1), (128, RTX, 2)],
)
def test_one_stage_of_queries_where_a_second_block_fits_so(head_dim, kib, stages, set_device, monkeypatch):
    problem = make_problem(Case("stages", S=200, Hq=2, Hkv=1, D=head_dim, B=1, spans="infill"), torch.bfloat16)
    taken = []

    def backward(arguments, **how):
        set_device(shared_bytes=(kib if len(taken) else 228) * 1024)
        _backward(arguments, **how)
        taken.append(_emulator.largest_launch())

    _backward = _emulator.backward
    monkeypatch.setattr(_emulator, "backward", backward)
    two, got = run(problem), run(problem)
    stage = 2 * head_dim * (64 if head_dim <= 128 else 32)  # bytes
    assert taken[0] - taken[1] == (2 - stages) * stage
    at_a_time = min(2, kib * 1024 // (taken[1] + 1024))
    assert at_a_time == (1 if (head_dim, kib) == (128, RTX) else 2)
    assert all(torch.equal(got[name], two[name]) for name in two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "offsets", [[0, -(2**31)], [0, 40, 20, 70], [0, 10**9, 70], [-5, 30, 70], [0, 30, 60], [0, -(2**31), 2**31 - 1]]
)
def test_offsets_that_are_wrong_touch_no_memory_outside(offsets, dtype):
    """On a device cu_seqlens is not read back, so not checked. AddressSanitizer watches in `make test-kernels`."""
    problem = make_problem(Case("offsets", S=70, D=16, B=1, spans="random"), dtype)
    problem.options["cu_seqlens"] = torch.tensor(offsets, dtype=torch.int32)
    results = run(problem, dtype)
    assert results["out"].shape == (1, 2, 70, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_beyond_the_last_offset_see_nothing_and_are_not_seen(dtype):
    problem = make_problem(Case("short", S=70, D=16, B=1), dtype)
    problem.options["cu_seqlens"] = torch.tensor([0, 30], dtype=torch.int32)
    results = run(problem, dtype)
    assert not any(results[name][:, :, 30:].any() for name in ("out", "grad_q", "grad_k", "grad_v"))
    assert (results["lse"][:, :, 30:] == -torch.inf).all()
    assert results["grad_k"][:, :, :30].any()


def test_lse_does_not_drift_with_the_number_of_tiles():
    """With an unchanged largest score every tile must leave the sums as they are, exactly."""
    length = 4096
    q, k, v = (torch.zeros(1, 1, length, 128, dtype=torch.bfloat16) for _ in range(3))
    q[0, 0, ::512, 0] = 8.8125
    k[..., 0] = 8.8125
    cos = torch.ones(1, length, 0)
    attention = emulated.attention("round-robin", "at-issue")
    _, lse = attention(q, k, v, cos, cos, scale=0.73, return_lse=True)
    want = torch.full_like(lse, length).log().double()
    want[..., ::512] += 8.8125**2 * 0.73
    torch.testing.assert_close(lse.double(), want, rtol=3e-7, atol=0)


def test_slots_of_more_rows_than_threads_that_number_them():
    """Two batch entries of 1100 rows: many placeholders, and at first nothing else; none at all."""
    ids = torch.zeros(2, 1100, dtype=torch.int32)
    ids[0, torch.rand(1100, generator=torch.Generator().manual_seed(0)) < 0.6] = -1
    ids[0, :150] = -1
    ids[0, 500:600] = 1
    problem = make_problem(Case("slots", S=1100, Hq=1, Hkv=1, D=32), torch.bfloat16, ids=ids)
    assert_as_good_as_torch(emulated.attention("random", "at-wait", seed=1), problem, torch.bfloat16)


@pytest.mark.parametrize("offsets", [[0, 100], [0, 60], [0, 130]])
def test_ordered_sums_end_where_the_last_offset_is_too_small(offsets):
    """A tile of slots may begin at any row: here at the last query of a tile, which is in no sequence."""
    ids = torch.zeros(1, 130, dtype=torch.int32)
    ids[:, 1:64] = -1
    problem = make_problem(Case("short", S=130, Hq=1, Hkv=1, D=32, B=1), torch.bfloat16, ids=ids)
    problem.options["cu_seqlens"] = torch.tensor(offsets, dtype=torch.int32)
    results = run(problem, deterministic=True)
    assert not any(results[name][:, :, offsets[-1] :].any() for name in ("out", "grad_q", "grad_k", "grad_v"))
    assert results["grad_q"][:, :, : offsets[-1]].any()


def test_placeholders_take_no_place_in_tiles_of_keys():
    """With every other key hidden, both kernels read half as much from shared memory, but for the diagonal."""
    reads = []
    for step in (1, 2):
        ids = torch.full((1, 1024), -1, dtype=torch.int32)
        ids[:, ::step] = 0
        banks = _emulator.BankCounts()
        run(make_problem(Case("slots", S=1024, Hq=1, Hkv=1, D=32, B=1), torch.bfloat16, ids=ids), banks=banks)
        table = banks.table()
        reads.append([table[kernel]["ldmatrix"][0] for kernel in ("forward", "backward")])
    for every, half in zip(*reads, strict=True):
        assert 0.5 < half / every < 0.6


@pytest.mark.parametrize("head_dim", count_bank_conflicts.HEAD_DIMS)
def test_tiles_in_shared_memory_have_no_bank_conflicts(head_dim):
    """The swizzle serves the products, the copies and the accumulators that are stored."""
    costs = count_bank_conflicts.costs(head_dim)
    assert {kernel for kernel, _ in costs} == {"number_keys", "forward", "backward"}
    for kernel in "forward", "backward":
        for access in "ldmatrix", "cp.async", "store":
            cost = costs[kernel, access]
            assert cost.requests > 0
            assert cost.conflicts == 0, (kernel, access, cost)
