import math

import pytest

from initlab import Experiment, predict


def test_digits_start_from_their_own_second_moment():
    experiment = Experiment(depth=3, activation="tanh", data="digits")
    measured = experiment.run()["input"].forward.second_moment
    assert predict(experiment)["input"].forward.second_moment == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "gelu"])
@pytest.mark.parametrize("loss", ["probe", "cross_entropy"])
def test_predictions_on_digits_are_what_wide_nets_measure(activation, loss):
    """Six layers of width 1024 are within 25 % of infinite width, gradients within a factor 2."""
    experiment = Experiment(
        depth=6, width=1024, activation=activation, scheme="kaiming_normal", loss=loss,
        batch_size=64, bias="pytorch_default",
    )  # fmt: skip
    trace, theory = experiment.run(), experiment.predict()
    output = trace["output"].backward.second_moment
    for site in theory:
        measured = trace[site.name]
        ratio = measured.forward.second_moment / site.forward.second_moment
        assert ratio == pytest.approx(1, abs=0.25), site.name
        back = measured.backward.second_moment / output / site.backward.second_moment
        assert abs(math.log2(back)) < 1, site.name


def test_where_theory_is_silent_it_says_why():
    for changes in (
        {"architecture": "cnn"},
        {"norm": "batch"},
        {"scheme": "ones"},
        {"scheme": "uniform"},
        {"bias": 0.5},
    ):
        prediction = Experiment(depth=3).replace(**changes).predict()
        assert prediction.reason.startswith("No theory is drawn")
        assert len(prediction) == 0


def test_an_overflow_is_said_and_not_drawn():
    prediction = Experiment(depth=900, width=32, scheme="normal", data="noise").predict()
    assert prediction["linear900"].forward is None
    assert "overflows" in prediction["linear900"].reason
    assert prediction["linear3"].backward is None


def test_sites_are_found_by_name():
    prediction = Experiment(depth=2).predict()
    assert prediction[1].name == "linear1"
    with pytest.raises(KeyError, match="did you mean 'linear2'"):
        prediction["liner2"]
