import pytest

from initlab import theory


def test_relu_with_he_weights_keeps_every_second_moment():
    for q in (1e-20, 0.3, 1.0, 1e20):
        assert theory.length_map("relu", q, 2**0.5, 0.0) == pytest.approx(q)
        assert theory.chi_1("relu", q, 2**0.5) == pytest.approx(1)


def test_the_tanh_fixed_point_of_poole_et_al():
    """sigma_w 1.3, sigma_b 0.3: q* = 0.60704679, chi_1 = 0.93980743."""
    q = 1.0
    for _ in range(200):
        q = theory.length_map("tanh", q, 1.3, 0.3)
    assert q == pytest.approx(0.60704679, rel=1e-7)
    assert theory.chi_1("tanh", q, 1.3) == pytest.approx(0.93980743, rel=1e-7)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="q=-1"):
        theory.length_map("relu", -1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="sigma_w=nan"):
        theory.chi_1("relu", 1.0, float("nan"))
    with pytest.raises(TypeError, match="elementwise"):
        theory.chi_1(lambda z: z.softmax(-1), 1.0, 1.0)
