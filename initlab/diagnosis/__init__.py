"""diagnose(): what is wrong with a traced model, where it begins, and what to do about it.

**What counts as a fault** follows from what training can make good, not from what is usual.

- *Signal and gradient.* A mean square below 10⁻⁶ of where it started is lost to SGD; above 10³ (of
  signals; 10⁴ of gradients) the usual learning rates are unstable: ``flow.py`` derives the
  three (``LOST``, ``WILD``, ``STEEP``). The start is whatever last set the scale, an input, an
  embedding or a normalization layer; scales between it and 1 are natural, but an input that is
  large is as wild as any signal. What attention lets a class token learn of its input through
  branches that begin nearly closed is no less than it should be. Batch norms that are idle, in eval
  mode before any step, leave scales to training: these are not checked. Where biases may be all
  that is left, the signal is what differs from sample to sample. Finite width alone moves a deep
  ReLU network by decades, so the limits are widened by three standard deviations of the exact
  log-normal law of this width and depth. Batch normalization makes gradients grow by 1.47 a layer
  (Yang et al. 2019) where nothing is wrong: ``GROWTH``, as far as it trains, ``TRAINED``.
- *Gradients* must be out of bounds twice: as the sum of all squares of ∂L/∂h, relative to the last
  layer's (weights of variance 1/fan_in keep that sum, whatever the widths), and as the mean square
  of ∂L/∂W over that of W, the relative size of an SGD step, again relative to the last layer's.
  Average pooling lowers the first without harm, and the second not at all. Where training can do
  without at first, in residual branches that begin nearly closed and in the queries and keys of an
  attention that is nearly uniform, no more is expected than arrives: ``openings.py`` derives how
  much, and that weights below ``SMALL`` are no excuse. A last layer of zeros opens by its own
  gradient, which grows it in proportion to the steps: it is noted, and no fault.
- *Dead and saturated* units: more than half of those that should be alive. Of units that are flat
  on one side (relu, gelu) up to one half is inactive on a whole batch, the more the more alike its
  inputs have become (``theory.inactive_fraction``): 75 % and three standard deviations of a
  binomial are the limit, or all of them. Of units with declared tails P(z in the tails), z ~ N(0,
  1), is saturated (hardtanh 32 %, tanh 3 %): every activation has a limit of its own. A unit is
  saturated where its slope is below 5 %, dead where it is 0 on the whole batch. The gates of
  an LSTM or GRU are judged by what their hidden weights alone make of its states.
- *Symmetry*: weights that are all equal, or units that all do the same, to float precision.
- *Biases* dominate where they are three times what the weights contribute: a Gaussian
  pre-activation further than three standard deviations from a kink crosses it for one sample in a
  thousand, and the layer has become linear (or dead). A signal smaller than natural is not theirs
  to answer for: they are held against one of mean square 1.
- *Rank*: all inputs have become alike when what differs is below 10⁻⁶ of the mean square, by the
  argument above; or, with ``geometry``, when a single layer brings their effective rank down to
  that of a line.
- *The initial loss*: logits within the healthy zone, a mean square of 10 and chance, cost at most
  what the random energy model gives for them (Derrida 1981): log C + σ²/2, or σ·√(2 log C) where σ
  is larger than √(2 log C).
- *Weights* that share the cause are drawn together: those in front of a normalization or at the end
  of a residual branch too, where they are beyond ``SMALL``, which no choice explains. The ω of
  sin(ω·z) is measured at the gradient, ω² = |∂L/∂z|²/|∂L/∂sin|²/E cos², and drawn for as a SIREN.

**Cause and consequence.** A finding with a ``because`` is a consequence; those without one are the
causes, and come first.

**In this folder** ``diagnosing`` asks the rules, which stand in the three ``faults_of_…``; ``flow``
is the trace as they read it, ``openings`` the ways of its gradients, and ``draws`` how its weights
should have been drawn; ``remedies`` is what to do, ``findings`` what comes back.
"""

from initlab.diagnosis.diagnosing import diagnose
from initlab.diagnosis.findings import FAULTS, Diagnosis, Fault, Finding, joined

__all__ = ["FAULTS", "Diagnosis", "Fault", "Finding", "diagnose", "joined"]
