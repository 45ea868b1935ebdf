"""predict(): what theory says for every site of an experiment.

``predicting`` reads the experiment and says where theory is silent; ``propagation`` carries the
numbers through the layers, with what ``many`` says of the activation. How far one draw of the
weights strays from them is in ``scattering`` for weights of mean 0, else, with the gradients, in
``shifting`` and ``shifting_back``, with what ``units`` says of the activation.
``outliers`` follows the longest sample of a batch.
"""

from initlab.prediction.predicting import (
    Predictable,
    PredictedSite,
    PredictedStats,
    Prediction,
    predict,
    prescribed,
)

__all__ = ["Predictable", "PredictedSite", "PredictedStats", "Prediction", "predict", "prescribed"]
