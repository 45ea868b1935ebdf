"""LiveFigure: the one widget that shows a matplotlib figure and refreshes it fast.

The figure's static parts are drawn once and kept as pixels; an update restores them, draws the
moving artists over them and sends one PNG. Nothing here knows what is drawn.
"""

from __future__ import annotations

import base64
import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

FRONT_END = """
function prepareControls(root) {
  // ipywidgets' folds take no focus and no key of their own.
  for (const header of root.querySelectorAll('.jupyter-widget-Collapse-header')) {
    const open = header.nextElementSibling?.classList.contains('lm-mod-hidden') === false;
    header.setAttribute('aria-expanded', String(open));
    if (header.hasAttribute('tabindex')) continue;
    header.tabIndex = 0;
    header.setAttribute('role', 'button');
    header.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      header.click();
    });
  }
  // Else JupyterLab takes arrows and letters typed in a menu for its own shortcuts.
  for (const part of root.querySelectorAll('select, button, .noUi-handle, [tabindex]'))
    part.setAttribute('data-lm-suppress-shortcuts', 'true');
  // ipywidgets' sliders have no accessible name of their own: lend them their visible label.
  for (const box of root.querySelectorAll('.widget-hslider, .widget-text')) {
    const label = box.querySelector('.widget-label')?.textContent
      || box.closest('.initlab-number')?.querySelector('.widget-label')?.textContent
      || box.closest('.initlab-optional')?.querySelector('.widget-checkbox label')?.textContent;
    if (!label) continue;
    for (const part of box.querySelectorAll('.noUi-handle, input'))
      if (part.getAttribute('aria-label') !== label) part.setAttribute('aria-label', label);
    for (const part of box.querySelectorAll('.widget-readout'))
      if (!part.getAttribute('aria-label')) part.setAttribute('aria-label', label + ', value');
  }
}

function render({ model, el }) {
  el.classList.add('initlab-live');
  const image = document.createElement('img');
  const note = document.createElement('div');
  note.className = 'initlab-readout';
  note.setAttribute('aria-hidden', 'true');
  el.append(image, note);

  // An image keeps its last picture until the next is there and decoded: no frame is blank. In the
  // source itself it is there at once, where a blob would have to be fetched from another process.
  image.decoding = 'sync';
  const showPixels = () => { image.src = model.get('source'); };
  const showText = () => { image.alt = model.get('alt'); };
  const showState = () => { el.classList.toggle('initlab-dimmed', model.get('dimmed')); };

  const showHint = () => { note.textContent = model.get('hint'); };
  const read = (event) => {
    const box = image.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    for (const axes of model.get('readout')) {
      const [left, top, right, bottom] = axes.box;
      if (x < left || x > right || y < top || y > bottom || !axes.rows.length) continue;
      const at = axes.span[0] + (x - left) / (right - left) * (axes.span[1] - axes.span[0]);
      let nearest = axes.rows[0];
      for (const row of axes.rows)
        if (Math.abs(row[0] - at) < Math.abs(nearest[0] - at)) nearest = row;
      note.textContent = nearest[1];
      return;
    }
    showHint();
  };
  image.addEventListener('pointermove', read);
  image.addEventListener('pointerleave', showHint);
  showHint();

  model.on('change:source', showPixels);
  model.on('change:alt', showText);
  model.on('change:dimmed', showState);
  showPixels(); showText(); showState();

  let watcher = null;
  const start = () => {
    const root = el.closest('.initlab-explorer');
    if (!root) { if (el.isConnected === false) requestAnimationFrame(start); return; }
    prepareControls(root);
    watcher = new MutationObserver(() => prepareControls(root));
    watcher.observe(root, { childList: true, subtree: true, attributeFilter: ['class'] });
  };
  requestAnimationFrame(start);
  return () => { watcher?.disconnect(); };
}
"""
"""JavaScript that defines ``render``; a subclass with more to render adds to it."""

STYLE = """
.initlab-live { position: relative; line-height: 0; min-height: 100px; }
.initlab-live img { width: 100%; height: auto; background: white; border-radius: 4px;
  transition: opacity 0.15s; }
.initlab-live.initlab-dimmed img { opacity: 0.3; }
.initlab-readout { line-height: 1.4; min-height: 1.4em; font-size: 12px; padding: 1px 6px;
  color: var(--jp-ui-font-color1, #333); font-variant-numeric: tabular-nums; }
.initlab-sentence { line-height: 1.4; }
.initlab-sentence[role=note] { font-size: 12px; }
.initlab-sentence[role=alert] { color: #a00; }
.initlab-sentence[role=alert] {  /* dark on light, light on dark */
  color: color-mix(in srgb, var(--jp-error-color1, #d00) 60%, var(--jp-ui-font-color1, #111)); }
.initlab-explorer .widget-dropdown > select {  /* with the theme's arrow, not a black one */
  appearance: auto; background-image: none !important; padding-right: 2px; }
.initlab-tree { flex-direction: column; align-items: stretch; }
.initlab-tree > .widget-label { text-align: left; width: auto; margin: 0 0 0 2px; }
.initlab-tree > select { flex: 1 0 auto; }
.initlab-explorer .jupyter-widget-Collapse-header { background: none; border: none;
  font-weight: normal; padding: 3px 6px; }
.initlab-explorer .jupyter-widget-Collapse-contents { border: none; padding: 2px 6px; }
.initlab-explorer table { font-variant-numeric: tabular-nums; border-collapse: collapse; }
.initlab-explorer :is(td, th) { text-align: right; padding: 0 10px; }
.initlab-explorer :is(td, th[scope=row]) { white-space: nowrap; }
.initlab-explorer th { position: sticky; top: 0; background: var(--jp-layout-color1, white); }
"""

_SENDING = 0.001
"""Seconds that the thread that sends has to itself before more is computed; without them the
picture waits for all that follows it."""
_BACKGROUNDS = 8  # kept as pixels, some 2 MB each


class LiveFigure(anywidget.AnyWidget):
    """Shows a matplotlib figure as an ``<img>`` with alt text and a read-out under the pointer.

    Args:
        figure: what to show.
        cells: for each of its Axes the part of the figure that holds it and all of its texts,
            (left, bottom, right, top) in fractions; together they are the figure. Each then keeps
            backgrounds of its own, so that one that changes costs but its own part.

    Attributes:
        figure: the figure; the caller owns its artists.
        alt: what the picture says, in words.
        readout: per Axes ``{"box": [left, top, right, bottom] in fractions of the image,
            "span": [x0, x1], "rows": [[x, text], …]}``.
        dimmed: show the picture as out of date.
        hint: what stands below the picture while nothing is pointed at.
        png: the picture.
        timing: milliseconds of the last refresh: ``draw`` and ``encode``.
    """

    _esm = FRONT_END + "export default { render };"
    _css = STYLE

    source = traitlets.Unicode("").tag(sync=True)  # what the <img> is given
    alt = traitlets.Unicode("").tag(sync=True)
    readout = traitlets.List([]).tag(sync=True)
    dimmed = traitlets.Bool(False).tag(sync=True)
    hint = traitlets.Unicode("Point at the picture for its numbers.").tag(sync=True)

    def __init__(
        self, figure: Figure, cells: Sequence[tuple[float, ...]] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.figure = figure
        self.png = b""
        self.timing: dict[str, float] = {}
        self._cells = cells
        self._backgrounds: dict[object, Any] = {}  # the latest last

    def refresh(self, moving: Sequence[Artist], background: Any, alt: str | None = None) -> None:
        """Draw and send the picture.

        Args:
            moving: artists that are drawn over the kept background; they are ``animated``.
            background: what else is in the picture; equal only to that of an equal rest. One for
                each cell, if there are cells.
            alt: the new alt text; None leaves it, where it takes time and may follow.
        """
        start = time.perf_counter()
        canvas: Any = self.figure.canvas
        if self._cells:
            for index, each in enumerate(background):
                self._restore(index, each)
        else:
            self._restore(None, background)
        for artist in moving:
            self.figure.draw_artist(artist)
        drawn = time.perf_counter()
        self.png = _encode(canvas)
        source = "data:image/png;base64," + base64.b64encode(self.png).decode()
        self.timing = {
            "draw": 1e3 * (drawn - start),
            "encode": 1e3 * (time.perf_counter() - drawn),
        }
        with self.hold_sync():
            self.source, self.dimmed = source, False
            if alt is not None:
                self.alt = alt
        time.sleep(_SENDING)

    def _restore(self, cell: int | None, background: object) -> None:
        """Bring a cell's background, or the whole figure's, onto the canvas."""
        canvas: Any = self.figure.canvas
        pixels = self._backgrounds.pop((cell, background), None)
        if pixels is not None:
            canvas.restore_region(pixels)
        elif cell is None:
            canvas.draw()
            pixels = canvas.copy_from_bbox(self.figure.bbox)
        else:
            pixels = self._paint(cell)
        self._backgrounds[cell, background] = pixels
        if len(self._backgrounds) > _BACKGROUNDS * max(len(self._cells), 1):
            del self._backgrounds[next(iter(self._backgrounds))]

    def _paint(self, cell: int) -> Any:
        """Draw one Axes onto an empty cell; its pixels."""
        canvas: Any = self.figure.canvas
        corners = self.figure.transFigure.transform(np.reshape(self._cells[cell], (2, 2))).round()
        empty = Rectangle(tuple(corners[0]), *(corners[1] - corners[0]), antialiased=False,
                          color=self.figure.get_facecolor(), linewidth=0)  # fmt: skip
        empty.set_figure(self.figure)
        for artist in (empty, self.figure.axes[cell]):
            self.figure.draw_artist(artist)
        return canvas.copy_from_bbox(Bbox(corners))

    def boxes(self) -> list[list[float]]:
        """Where each Axes lies: left, top, right, bottom in fractions of the image."""
        spots = [ax.get_position() for ax in self.figure.axes]
        return [[spot.x0, 1 - spot.y1, spot.x1, 1 - spot.y0] for spot in spots]


def _encode(canvas: Any) -> bytes:
    """The canvas as PNG (ISO/IEC 15948), little more than half the time of Pillow.

    Every row is stored as its difference from the row above (filter 2, "up"): of a figure that is
    mostly zeros, with no need to try the other filters.
    """
    pixels = np.asarray(canvas.buffer_rgba())
    height, width, _ = pixels.shape
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    for channel in range(3):  # five times as fast as a slice of all three
        rgb[..., channel] = pixels[..., channel]
    rows = rgb.reshape(height, 3 * width)
    filtered = np.full((height, 1 + 3 * width), 2, dtype=np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = zlib.compress(filtered.data, level=1)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
