"""predict(): what theory says for every site of an experiment.

``predicting`` reads the experiment and says where theory is silent; ``propagation`` carries the
numbers through the layers.
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
