"""The apps, one per file, built only from the parts below them.

``signal``, ``scheme``, ``phase`` and ``model`` are the apps. What they share is in ``explorer``,
``controls``, ``draggable`` and ``finding``; ``plane``, ``phase_…`` and ``model_…`` serve one app.
"""
