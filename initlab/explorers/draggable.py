"""A LiveFigure with a point in it that is dragged by hand and moved by arrow keys."""

from __future__ import annotations

import traitlets

from initlab.live import FRONT_END, STYLE, LiveFigure

_DRAGGING = """
function renderDraggable(context) {
  const { model, el } = context;
  const stop = render(context);
  const image = el.querySelector('img');
  image.tabIndex = 0;
  image.draggable = false;
  el.classList.add('initlab-draggable');

  const place = (event) => {
    const box = image.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const within = ([x, y]) => {
    const [left, top, right, bottom] = model.get('area');
    return x >= left && x <= right && y >= top && y <= bottom;
  };
  let dragging = false;
  const moveTo = ([x, y]) => {
    const [left, top, right, bottom] = model.get('area');
    model.set('pressed', [
      Math.min(Math.max((x - left) / (right - left), 0), 1),
      Math.min(Math.max((bottom - y) / (bottom - top), 0), 1)]);
    model.save_changes();
  };
  image.addEventListener('pointerdown', (event) => {
    if (event.button !== 0 || !within(place(event))) return;
    event.preventDefault();
    image.focus({ preventScroll: true });
    image.setPointerCapture(event.pointerId);
    dragging = true;
    moveTo(place(event));
  });
  image.addEventListener('pointermove', (event) => {
    image.style.cursor = dragging || within(place(event)) ? 'crosshair' : '';
    if (dragging) moveTo(place(event));
  });
  for (const end of ['pointerup', 'pointercancel'])
    image.addEventListener(end, () => { dragging = false; });
  // Else a finger scrolls the page away from under the point.
  image.addEventListener('touchmove', (event) => { if (dragging) event.preventDefault(); },
    { passive: false });

  // Steps are summed up here: of several messages that wait, only the newest is sent.
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  image.addEventListener('keydown', (event) => {
    const arrow = arrows[event.key];
    if (!arrow || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const size = event.shiftKey ? 10 : 1;
    model.set('steps', model.get('steps').map((sum, axis) => sum + size * arrow[axis]));
    model.save_changes();
  });
  return stop;
}
export default { render: renderDraggable };
"""

_HINT = "Drag the point, or move it with the arrow keys. Point at the picture for its numbers."
_FOCUS = """
.initlab-draggable img:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px; }
"""


class DraggableFigure(LiveFigure):
    """A ``LiveFigure`` that reports where in one of its Axes the pointer is pressed.

    Attributes:
        area: that Axes' box: left, top, right, bottom in fractions of the image.
        pressed: where the pointer is pressed or dragged: fractions of the area, from its lower left
            corner; empty before the first press.
        steps: how often the arrow keys were pressed, right minus left and up minus down, in all;
            with Shift a press counts ten times.
    """

    _esm = FRONT_END + _DRAGGING
    _css = STYLE + _FOCUS

    hint = traitlets.Unicode(_HINT).tag(sync=True)
    area = traitlets.List([0.0, 0.0, 1.0, 1.0]).tag(sync=True)
    pressed = traitlets.List([]).tag(sync=True)
    steps = traitlets.List([0, 0]).tag(sync=True)
