"""Attention inside segments: every arrangement gives what one product per segment gives, forward and backward."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks import attention, tiles
from tasks.attention import Dropout, Products, attend
from tasks.tiles import Bands, Pieces, Rows, Segments

HEADS, WIDTH = 2, 4
SEEDS = st.integers(0, 10_000)
ARRANGEMENTS = {"rows": (1 << 20, 1 << 20), "pieces and bands": (0, 0)}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(rows: int, length: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v (leaves) and a gradient of the result: (B, L, H, K)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length, HEADS, WIDTH)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(part < 3) for part in range(4)]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, ids_BL: Tensor, reach: int | None) -> Tensor:
    """Each segment alone, by the definition; zero on padding."""
    out = 0 * (query + key + value)
    for row, ids_L in enumerate(ids_BL):
        for number in ids_L[ids_L >= 0].unique():
            at = (ids_L == number).nonzero()[:, 0]
            scores = torch.einsum("qhk,shk->hqs", query[row, at], key[row, at]) / math.sqrt(WIDTH)
            if reach is not None:
                scores = scores.masked_fill((at[:, None] - at).abs() > reach, -torch.inf)
            out[row, at] += torch.einsum("hqs,shk->qhk", scores.softmax(-1), value[row, at])
    return out


def compare(ids_BL: Tensor, window: int, is_global: bool, tolerance: float = 1e-12, seed: int = 0) -> None:
    query, key, value, grad = drawn(*ids_BL.shape, seed)
    inside = (ids_BL >= 0)[..., None, None]
    segments = Segments.from_ids(ids_BL, window)
    ours = attend(query, key, value, segments, is_global, 0.0)
    assert torch.isfinite(ours).all(), "padding is finite"
    reach = None if is_global else window // 2
    found = [ours * inside, *torch.autograd.grad((ours * inside * grad).sum(), (query, key, value))]
    theirs = one_by_one(query, key, value, ids_BL, reach)
    expected = [theirs, *torch.autograd.grad((theirs * grad).sum(), (query, key, value))]
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max().detach()) < tolerance


@st.composite
def packed(draw: st.DrawFn) -> Tensor:
    """Segment numbers (B, L): random runs and random padding behind them; a row may be all padding."""
    length = draw(st.integers(1, 40))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(1, 17), max_size=8))
        row = np.repeat(np.arange(len(lengths)), lengths)[:length]
        rows.append(np.pad(row, (0, length - len(row)), constant_values=-1))
    return torch.from_numpy(np.stack(rows)).long()


@settings(max_examples=60, deadline=None)
@given(ids_BL=packed(), window=st.integers(1, 30), arrangement=st.sampled_from(sorted(ARRANGEMENTS)), seed=SEEDS)
def test_every_arrangement_is_one_product_per_segment(ids_BL: Tensor, window: int, arrangement: str, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rows, bands = ARRANGEMENTS[arrangement]
        patch.setattr(tiles, "ROWS_LENGTH", rows)
        patch.setattr(tiles, "BANDS_LENGTH", bands)
        patch.setattr(tiles, "NARROWEST_BAND", 1 + seed % 7)
        patch.setattr(tiles, "SIZE_STEP", 1 + seed % 6)
        patch.setattr(tiles, "TOGETHER", 1 + seed % 300)
        patch.setattr(attention, "KEPT_SCORES", 40 + seed % 300)
        compare(ids_BL, window, is_global=True, seed=seed)
        compare(ids_BL, window, is_global=False, seed=seed)


def test_the_arrangement_is_chosen_by_length_and_kind() -> None:
    def kinds(length: int, window: int = 128) -> tuple[type, type]:
        segments = Segments.from_ids(torch.zeros(1, length, dtype=torch.int64), window)
        return type(segments.tiles(True)), type(segments.tiles(False))

    assert kinds(128) == (Rows, Rows)
    assert kinds(512) == (Pieces, Bands)
    assert kinds(8192) == (Pieces, Bands)
    assert kinds(512, window=1024) == (Pieces, Pieces), "a window that covers the row limits nothing"
    segments = Segments.from_ids(torch.zeros(1, 512, dtype=torch.int64), 1024)
    assert segments.tiles(False) is segments.tiles(True)


def test_a_long_segment_is_computed_in_stripes_without_its_square() -> None:
    """One segment of 2500 among others: no tensor of the computation has more numbers than a stripe of queries."""
    ids_BL = torch.from_numpy(np.repeat(np.arange(4), (2500, 300, 200, 72)))[None]
    segments = Segments.from_ids(ids_BL, 128)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(
                max((one.numel() for one in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(one)), default=0)
            )
            return out

    query, key, value, grad = drawn(1, 3072, 1, torch.float32)
    for is_global in (True, False):
        with Sizes():
            attend(query, key, value, segments, is_global, 0.0).backward(grad)
        limit = HEADS * (attention.KEPT_SCORES if is_global else 3072 * 3 * tiles.NARROWEST_BAND)
        assert max(largest) <= limit < HEADS * 2500**2
        largest.clear()
    compare(ids_BL, 128, is_global=True, tolerance=1e-10)
    compare(ids_BL, 128, is_global=False, tolerance=1e-10)


@pytest.mark.slow
def test_8192_positions_have_the_products_of_each_segment() -> None:
    ids_BL = torch.from_numpy(np.repeat(np.arange(9), (900, 1100, 64, 3, 2000, 700, 1500, 1025, 800)))
    ids_BL = torch.nn.functional.pad(ids_BL, (0, 8192 - len(ids_BL)), value=-1)[None]
    compare(ids_BL, 128, is_global=True, tolerance=1e-10)
    compare(ids_BL, 128, is_global=False, tolerance=1e-10)


def test_bounds_are_those_of_the_segments_at_a_constant_length() -> None:
    ids_BL = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [0, 1, 1, 1, 1, 1, 1]])
    segments = Segments.from_ids(ids_BL, 4)
    assert segments.bounds_S.tolist() == [0, 3, 5, 7, 8, 14, 14, 14]
    assert segments.bounds_S.dtype == torch.int32
    assert segments.positions_BL.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    for rows in (1, 3, 8):  # from one segment a row to the most that fit without another length
        whole = Segments.from_ids(torch.zeros(rows, 16, dtype=torch.int64), 4).bounds_S
        halves = Segments.from_ids((torch.arange(16) >= 8).long().expand(rows, 16).contiguous(), 4).bounds_S
        assert len(whole) in (len(halves), len(halves) // 2) and len(whole) >= 2 * rows
        assert whole[-1] == halves[-1] == rows * 16


def test_masks_say_what_the_tiles_say() -> None:
    segments = Segments.from_ids(torch.tensor([[0, 0, 0, 1, 1, -1, -1]]), window=2)
    seen = [[1, 1, 1, 0, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 0, 0]] * 2 + np.eye(7, dtype=int)[5:].tolist()
    assert segments.mask_B1LL(True).int()[0, 0].tolist() == seen
    assert segments.mask_B1LL(False).int()[0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("stripes", [1 << 20, 10])
def test_dropout_drops_a_share_of_the_weights_and_has_the_gradient_of_what_it_dropped(
    stripes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEPT_SCORES", stripes)
    monkeypatch.setattr(tiles, "ROWS_LENGTH", 0)
    segments = Segments.from_ids(torch.tensor([[0] * 4 + [1] * 2 + [-1]]), 4)
    query, key, value, _ = (one.detach().permute(2, 0, 1, 3).flatten(1, 2) for one in drawn(1, 7, 3))

    def dropped(*qkv: Tensor) -> Tensor:
        torch.manual_seed(5)
        return Products.apply(*qkv, segments, True, 0.3)

    torch.autograd.gradcheck(dropped, [one.clone().requires_grad_() for one in (query, key, value)])
    assert not torch.equal(dropped(query, key, value), Products.apply(query, key, value, segments, True, 0.0))
    drawn_weights = Dropout(0.3, 1).draw(torch.ones(400, 400))
    assert drawn_weights is not None and abs(float(drawn_weights.mean()) - 1) < 0.01
    assert {round(float(one), 5) for one in drawn_weights.unique()} == {0.0, round(1 / 0.7, 5)}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_global", [True, False])
def test_on_cuda_the_kernels_agree_with_the_products(dtype: torch.dtype, is_global: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ids_BL = torch.from_numpy(np.repeat(np.arange(5), (300, 100, 80, 20, 12)))[None].repeat(2, 1)
    ids_BL[1, 500:] = -1
    segments, inside = Segments.from_ids(ids_BL, 128), (ids_BL >= 0)[..., None, None]
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 512, 4, 64, generator=generator).to(dtype) for _ in range(4)]
    found = []
    for device in ("cpu", "cuda"):
        query, key, value, grad = (one.to(device).requires_grad_(part < 3) for part, one in enumerate(given))
        there = segments.to(device)
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        out = attend(query, key, value, there, is_global, 0.0)
        torch.cuda.set_sync_debug_mode("default")
        out.backward(grad * inside.to(device))
        found.append([(out * inside.to(device)).cpu(), *(one.grad.cpu() for one in (query, key, value))])
    for a, b in zip(*found, strict=True):
        assert float((a - b).float().norm() / b.float().norm()) < (2e-2 if dtype == torch.bfloat16 else 1e-3)
