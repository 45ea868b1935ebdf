"""One observed forward and backward pass of any ``nn.Module``, as plain numbers.

**What is observed.** A *site* is one tensor, in execution order: the inputs; the result of every
operation with weights; of every activation function, however it is called; of every normalization;
of every residual sum (an addition of equal shapes, both of which depend on the input); of every
softmax and any other leaf module (kind ``other``); and the output of the model.

**What is measured of a tensor h.** Samples are the entries of ``batch_dim``, units the elements of
one sample. Variances are population variances: divided by N, not N − 1.

- ``mean`` E[h] and ``second_moment`` E[h²], over samples and units together. The second moment is
  what σ_w²·E φ² + σ_b² propagates.
- ``var`` = E[h²] − E[h]², over samples and units together.
- ``across_samples_var``: the variance over the samples at each unit, averaged over the units: what
  still tells one input from another. Where it is small beside the second moment, all inputs look
  alike.
- ``across_units_var``: the variance over the units of each sample, averaged over the samples. It is
  0 where all units do the same: unbroken symmetry.
- ``abs_max``: the largest magnitude.
- ``nonfinite``: how many elements are infinite or nan. Nothing is left out of the other numbers
  because of them: they are what arithmetic over all elements gives. One infinity makes E[h²] and
  ``abs_max`` inf, E[h] ±inf (nan where there are both) and the variances nan; one nan makes all of
  them nan. So a moment is a number only where every element is.
- ``zero_fraction``: elements that are exactly 0.
- ``saturated_fraction``, of an activation: elements whose *pre-activation* lies in the declared
  tails of the activation; None where it declares none (relu).
- ``dead_fraction``, of an activation: units whose slope φ' is exactly 0 for every sample (and every
  position, where a unit is a channel or a feature of a sequence). A relu unit that never fires is
  dead; a tanh unit under zero weights is not.
- ``backward``: the same statistics of ∂L/∂h, the gradient of that tensor. Sites that the gradient
  does not reach have None there and ``reached`` False; that is not a gradient of 0.
- ``weight`` and ``weight_grad``: of the weight as the operation used it, and of ∂L/∂W, summed over
  all its uses where it is shared. Of a recurrent layer, the first hidden-to-hidden matrix.
- ``fan_in``: how many terms one output sums up; ``fan_out``: how many outputs one input enters, on
  average over inputs. These are the true ones, also for grouped, depthwise, strided and transposed
  convolutions.
- ``histogram``: 64 equal bins from the smallest to the largest finite element. ``cosine``: the mean
  uncentred cosine over distinct pairs of samples. ``effective_rank``: exp of the entropy of the
  singular values of the samples × units matrix, divided by their sum (Roy & Vetterli 2007). The
  last two look at the first 1,024 samples.

**What cannot be measured** says so in ``note``: complex, sparse, quantized and nested tensors,
those inside functorch transforms, what TorchScript has compiled (its output is measured), and
gradients of what ran under ``no_grad``, of views whose memory is written to in place, and of inputs
where the model overwrites what these gradients need. What lies around them is measured as usual.
Where a layer takes its input for one sample without a batch dimension (an image of C × H × W), the
numbers are those of a batch of one.

L is the loss where a target is given, the output itself where it is a scalar, and otherwise the
inner product of the output with a random cotangent of unit variance, so that gradients are relative
to the output.

Sums are right where float32 would lose them: a standard deviation of 1e-30 is reported as 1e-30,
and a variance is right where the mean is 10⁴ times the standard deviation. Squares of float64
tensors beyond 10^±154 leave the range of Python's own floats; ``abs_max`` stays right there.

**In this folder** ``running`` holds ``trace``; ``observing`` watches the pass, with ``operations``,
the table of what it looks at, and ``checkpoints``; ``measuring`` and ``units`` take the statistics;
``sites`` is what comes back; ``preserving`` leaves the model as it was.
"""

from initlab.tracing.measuring import Histogram, Stats
from initlab.tracing.preserving import preserved, uncollected
from initlab.tracing.running import trace
from initlab.tracing.sites import Site, Trace

__all__ = ["Histogram", "Site", "Stats", "Trace", "preserved", "trace", "uncollected"]
