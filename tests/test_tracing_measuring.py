"""The statistics of one tensor, against the same ones computed plainly in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from initlab.tracing import Stats
from initlab.tracing.measuring import (
    Meter,
    _deliver,
    _Job,
    _sum_on_device,
    _Wish,
    geometry,
    histogram,
    why_opaque,
)

SHAPES = [(3, 1), (8, 5), (4, 3, 8, 8), (256, 256), (1000, 300), (24, 3, 64, 64), (1, 300_000)]


def measured(tensor, batch_axis=0, **options) -> tuple[Stats, float | None]:
    results = []
    meter = Meter(**options)
    meter.add(tensor, batch_axis, True, lambda stats, zeros: results.append((stats, zeros)))
    meter.finish()
    return results[0]


def plain(tensor: torch.Tensor) -> dict[str, float]:
    h = tensor.double().flatten(1)
    return {
        "mean": float(h.mean()),
        "var": float(h.var(correction=0)),
        "second_moment": float(h.square().mean()),
        "across_samples_var": float(h.var(0, correction=0).mean()),
        "across_units_var": float(h.var(1, correction=0).mean()),
        "abs_max": float(h.abs().max()),
    }


def assert_right(stats: Stats, tensor: torch.Tensor, rel: float = 1e-4) -> None:
    expected = plain(tensor)
    floor = 1e-12 * expected["second_moment"]
    rms = math.sqrt(expected["second_moment"])
    for name, value in expected.items():
        slack = 1e-6 * rms if name == "mean" else floor
        assert getattr(stats, name) == pytest.approx(value, rel=rel, abs=slack), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_statistics_are_right_at_every_scale_and_offset(shape, offset, scale):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset) * scale
    stats, zeros = measured(tensor)
    assert_right(stats, tensor)
    assert zeros == 0
    assert stats.numel == tensor.numel()


def test_variance_is_right_where_the_mean_is_ten_thousand_standard_deviations():
    for shape in SHAPES[1:]:
        tensor = torch.randn(shape) * 1e-3 + 10
        assert measured(tensor)[0].var == pytest.approx(plain(tensor)["var"], rel=1e-2)


@pytest.mark.parametrize("shape", [(32, 20), (300, 300)])
def test_units_that_all_do_the_same_have_no_variance_across_units(shape):
    tensor = torch.randn(shape[0], 1).expand(shape).contiguous()
    assert measured(tensor)[0].across_units_var < 1e-12
    assert measured(tensor.T.contiguous())[0].across_samples_var < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_other_dtypes_are_measured_in_full_precision(dtype):
    for shape in [(8, 5), (200, 100)]:
        tensor = (torch.randn(shape) * 10).to(dtype)
        assert_right(measured(tensor)[0], tensor, rel=1e-9)


def test_float64_is_summed_in_float64():
    tensor = torch.randn(300, 300, dtype=torch.float64) * 1e100
    assert_right(measured(tensor)[0], tensor, rel=1e-10)
    assert measured(tensor * 1e100)[0].second_moment == math.inf
    assert measured(tensor * 1e100)[0].nonfinite == 0


SPOILED = {
    "one infinity": ([math.inf], math.inf, math.inf, math.inf),
    "minus infinity": ([-math.inf, -math.inf], -math.inf, math.inf, math.inf),
    "both infinities": ([math.inf, -math.inf], math.nan, math.inf, math.inf),
    "a nan": ([math.nan], math.nan, math.nan, math.nan),
    "a nan and an infinity": ([math.nan, math.inf], math.nan, math.nan, math.nan),
}


@pytest.mark.parametrize("shape", [(16, 20), (64, 1000), (3, 100_000), (1, 70_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("spoil", SPOILED)
def test_moments_of_a_partly_overflowed_tensor_are_those_of_all_its_elements(shape, dtype, spoil):
    values, mean, second, largest = SPOILED[spoil]
    tensor = torch.randn(shape).to(dtype)
    tensor[0, 7], tensor[-1, 3 : 3 + len(values)] = 0.0, torch.tensor(values).to(dtype)
    stats, zeros = measured(tensor)
    assert stats.nonfinite == len(values)
    assert stats.numel == tensor.numel()
    found = (stats.mean, stats.second_moment, stats.abs_max)
    assert found == pytest.approx((mean, second, largest), nan_ok=True)
    assert math.isnan(stats.var)
    assert math.isnan(stats.across_samples_var)
    assert math.isnan(stats.across_units_var)
    assert zeros == pytest.approx(float((tensor == 0).double().mean()))
    some, _ = measured(tensor, moments_only=True)
    assert (some.mean, some.second_moment) == pytest.approx((mean, second), nan_ok=True)
    assert some.nonfinite == len(values)


@pytest.mark.parametrize("shape", [(256, 64), (181, 181), (1000, 300)])
def test_sums_over_few_distinct_values_are_not_rounded_one_way(shape):
    pixels = torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(0)) / 16 - 0.3
    expected = plain(pixels)
    stats, _ = measured(pixels)
    assert stats.second_moment == pytest.approx(expected["second_moment"], rel=1e-5)
    assert stats.across_samples_var == pytest.approx(expected["across_samples_var"], rel=1e-4)


def test_a_long_sample_is_summed_in_pieces():
    """One float32 sum of squares of three million elements is off by 3e-5."""
    tensor = torch.randn(1, 3_000_000, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.3
    stats, _ = measured(tensor)
    assert stats.second_moment == pytest.approx(plain(tensor)["second_moment"], rel=1e-6)


@pytest.mark.parametrize("spoil", [None, math.inf, -math.inf, math.nan])
def test_the_sums_taken_on_a_gpu_are_those_taken_on_the_cpu(spoil):
    tensors = torch.randn(3, 20, 30).relu()
    if spoil is not None:
        tensors[1, 2, 3] = spoil
    found: list[tuple[Stats, float | None]] = []
    job = _Job(lambda *result: found.append(result), 20, 30, _Wish(True, True, True))
    _deliver([job] * 3, _sum_on_device(tensors).numpy(), moments_only=False)
    for tensor, (stats, zeros) in zip(tensors, found, strict=True):
        expected, expected_zeros = measured(tensor)
        assert zeros == expected_zeros
        for name, value in vars(expected).items():
            assert getattr(stats, name) == pytest.approx(value, rel=1e-5, nan_ok=True), name


def test_an_overflow_does_not_spoil_its_neighbours():
    tensors = [torch.randn(16, 20) for _ in range(3)]
    tensors[1][0, 0] = math.inf
    results: list[Stats] = []
    meter = Meter()
    for tensor in tensors:
        meter.add(tensor, 0, True, lambda stats, _: results.append(stats))
    meter.finish()
    assert [stats.nonfinite for stats in results] == [0, 1, 0]
    assert_right(results[0], tensors[0])
    assert_right(results[2], tensors[2])


def test_a_shape_that_once_needed_care_is_measured_fast_and_right_again():
    results: list[Stats] = []
    meter = Meter()
    tensors = [torch.randn(100, 200) + offset for offset in (0.0, 1e4, 0.0, 0.0)]
    for tensor in tensors:
        meter.add(tensor, 0, True, lambda stats, _: results.append(stats))
    meter.finish()
    for stats, tensor in zip(results, tensors, strict=True):
        assert_right(stats, tensor)


def test_the_batch_dimension_may_be_any():
    for shape in [(7, 4, 3), (60, 40, 30)]:
        tensor = torch.randn(shape)
        assert_right(measured(tensor, 1)[0], tensor.movedim(1, 0))
        assert_right(measured(tensor, -1)[0], tensor.movedim(-1, 0))


def test_memory_layout_does_not_matter():
    images = torch.randn(8, 16, 32, 32).to(memory_format=torch.channels_last)
    assert_right(measured(images)[0], images)
    transposed = torch.randn(300, 200).T
    assert_right(measured(transposed)[0], transposed)
    assert_right(measured(torch.ones(200, 1).expand(200, 100))[0], torch.ones(200, 100))


def test_an_empty_tensor_is_reported_as_empty():
    stats, zeros = measured(torch.empty(0, 3))
    assert stats.numel == 0
    assert zeros is None


def test_a_scalar_is_measured():
    stats, _ = measured(torch.tensor(3.0), None)
    assert (stats.mean, stats.var, stats.across_samples_var) == (3.0, 0.0, None)


def test_moments_only_leaves_the_rest_out():
    for shape in [(8, 5), (300, 300)]:
        tensor = torch.randn(shape) + 1e3
        stats, zeros = measured(tensor, moments_only=True)
        assert stats.var == pytest.approx(plain(tensor)["var"], rel=1e-3)
        assert stats.abs_max is stats.across_samples_var is stats.across_units_var is zeros is None


def test_a_tensor_may_be_overwritten_after_it_was_added():
    results = []
    meter = Meter()
    tensor = torch.ones(4, 3)
    meter.add(tensor, 0, True, lambda stats, _: results.append(stats))
    tensor.zero_()
    meter.finish()
    assert results[0].mean == 1


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_sums_in_blocks_agree_with_plain_formulas(samples, units, offset, scale, rectify):
    tensors = [torch.randn(samples, units) * scale + offset for _ in range(3)]
    tensors = [t.relu() if rectify else t for t in tensors]
    results: list[tuple[int, Stats]] = []
    meter = Meter()
    for index, tensor in enumerate(tensors):
        meter.add(tensor, 0, True, lambda stats, _, index=index: results.append((index, stats)))
    meter.finish()
    assert len(results) == 3
    for index, stats in results:
        assert_right(stats, tensors[index], rel=2e-3)


# ---------------------------------------------------------------- options


def test_a_histogram_counts_every_finite_element():
    tensor = torch.randn(50, 40)
    tensor[0, 0] = math.inf
    counted = histogram(tensor)
    assert sum(counted.counts) == 1999
    assert len(counted.edges) == len(counted.counts) + 1 == 65
    assert histogram(torch.full((3,), math.nan)) is None
    assert sum(histogram(torch.ones(7)).counts) == 7


def test_cosine_and_effective_rank_of_known_matrices():
    cosine, rank = geometry(torch.eye(6), 0)
    assert cosine == pytest.approx(0)
    assert rank == pytest.approx(6)
    cosine, rank = geometry(torch.randn(1, 9).expand(5, 9), 0)
    assert cosine == pytest.approx(1)
    assert rank == pytest.approx(1, abs=1e-4)


def test_cosine_is_the_mean_over_distinct_pairs():
    h = torch.randn(7, 5, dtype=torch.float64)
    unit = h / h.norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T)[~torch.eye(7, dtype=torch.bool)]
    assert geometry(h, 0)[0] == pytest.approx(float(pairs.mean()))


def test_tensors_without_plain_values_are_opaque():
    assert "complex" in why_opaque(torch.ones(2, dtype=torch.complex64))
    assert "sparse" in why_opaque(torch.eye(2).to_sparse())
    assert why_opaque(torch.ones(2)) is None
