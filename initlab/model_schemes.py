"""Schemes that look at the whole model."""

from __future__ import annotations

from initlab.scheme_entry import Scheme

MODEL_SCHEMES: tuple[Scheme, ...] = ()
