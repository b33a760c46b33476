"""Moves of a slider in a panel, in the browser: from the key to the picture."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

from browser.harness import Notebook

#: Notebook -> its panel, the slider that is moved, and what the panel needs before.
PANELS: Final = {
    "00-start-here": ("panel", "size", "panel.workload.kernel.value = '6.1'"),
    "01-hooks-and-hypercalls": ("panel", "size", "panel.workload.kernel.value = '6.1'"),
    "02-walks-and-tlb": ("reach", "1st: ways", ""),
    "03-what-the-kernel-does": ("panel", "size", ""),
    "04-direct-and-writable": ("panel", "size", ""),
    "05-model-against-reality": ("panel", "tolerance times", ""),
    "06-shadow-and-the-mixed-set": ("panel", "budget", ""),
    "07-the-claims-of-2006": ("panel", "size", ""),
    "08-search": ("panel", "budget", ""),
    "09-your-own": ("panel", "size", "panel.workload.kernel.value = '6.1'"),
}
# Presses an arrow key on a slider and waits for the first frame with another picture.
_MOVE: Final = """async (handle, key) => {
  const image = handle.closest('.jp-OutputArea-output').querySelector('.pvmmu-picture img');
  const old = image.src;
  handle.focus();
  const start = performance.now();
  handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
  return await new Promise(resolve => {
    const look = () => {
      if (image.src !== old && image.complete && image.naturalWidth)
        resolve(performance.now() - start);
      else if (performance.now() - start > 20000) resolve(null);
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
}"""
_PRESS: Final = """(handle, keys) => {
  handle.focus();
  for (const key of keys)
    handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
}"""
_SEEN: Final = """async handle => {
  const image = handle.closest('.jp-OutputArea-output').querySelector('.pvmmu-picture img');
  const bytes = await (await fetch(image.src)).arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(hash, b => b.toString(16).padStart(2, '0')).join('');
}"""
_HELPER: Final = """
import hashlib as _h, json as _j, ipywidgets as _w
def _slider(p, name):
    s = next(w for w in p._controls.values() if getattr(w, 'description', None) == name) \\
        if name != 'size' or not hasattr(p.workload, 'size') else p.workload.size
    if hasattr(s, 'options'):
        return [list(s.options).index(s.value) if not isinstance(s.options[0], tuple) else s.index,
                0, len(s.options) - 1]
    return [s.value, s.min, s.max]
def _errors():
    every = _w.widgets.widget._instances.values()
    return [o.get('evalue') for w in every if isinstance(w, _w.Output) for o in w.outputs
            if o.get('output_type') == 'error']
"""


@dataclass
class Driver:
    """The panel of a notebook that has run.

    Parameters
    ----------
    nb : Notebook
        The notebook.
    name : str
        Its name without suffix: a key of `PANELS`.
    """

    nb: Notebook
    name: str

    def __post_init__(self) -> None:
        self.variable, self.slider, prepare = PANELS[self.name]
        assert self.nb.said(_HELPER) == ""
        assert self.nb.said(prepare) == ""
        self.nb.wait_idle()
        self.handle = (
            self.nb.page.locator(".widget-slider", has_text=self.slider)
            .locator(".noUi-handle").last
        )  # fmt: skip
        self.handle.scroll_into_view_if_needed()
        self.step = -1

    def ask(self, code: str) -> Any:
        """Return the value of an expression in which ``P`` is the panel."""
        told = self.nb.said(f"P = {self.variable}; print(_j.dumps({code}))")
        try:
            return json.loads(told)
        except ValueError:
            raise AssertionError(told) from None

    def place(self) -> list[int]:
        """Return where the slider stands, and its ends."""
        out: list[int] = self.ask(f"_slider(P, {self.slider!r})")
        return out

    def keys(self, n: int) -> list[str]:
        """Return the next keys: to one end, then to the other."""
        value, low, high = self.place()
        out = []
        for _ in range(n):
            self.step = 1 if value <= low else -1 if value >= high else self.step
            value += self.step
            out.append("ArrowRight" if self.step > 0 else "ArrowLeft")
        return out

    def move(self) -> tuple[float, float]:
        """Move the slider once; return milliseconds to the picture, and those of the kernel."""
        [key], drawn = self.keys(1), self.ask("P.redraws")
        took = self.handle.evaluate(_MOVE, key)
        assert took is not None, f"{self.name}: a move changed no picture"
        self.settle(f"P.redraws > {drawn}")
        return took, self.ask("P.kernel_ms")

    def settle(self, code: str, seconds: float = 20) -> None:
        """Wait until the panel has done something: its callbacks may run beside the cells."""
        end = time.monotonic() + seconds
        while not self.ask(code):
            assert time.monotonic() < end, f"{self.name}: never {code}: {self.ask('P.state()')}"
            time.sleep(0.02)

    def move_fast(self, n: int = 10) -> None:
        """Move the slider `n` times without waiting; the last state must be what is shown."""
        before, keys = self.place()[0], self.keys(n)
        self.handle.evaluate(_PRESS, keys)
        want = before + sum(1 if k == "ArrowRight" else -1 for k in keys)
        self.settle(f"_slider(P, {self.slider!r})[0] == {want} and P._drawn == P.state()")
        assert self.ask("P.history.line.value == _j.dumps(P.state())")
        told = self.ask("_h.sha256(P.picture.image.value).hexdigest()")
        end = time.monotonic() + 5
        while self.seen() != told:
            assert time.monotonic() < end, "the browser shows another picture than the kernel drew"

    def seen(self) -> str:
        """Return the SHA-256 of the picture that the browser shows."""
        return str(self.handle.evaluate(_SEEN))

    def errors(self) -> list[str]:
        """Return errors that hide in the state of widgets, and those of the console."""
        return [*self.ask("_errors()"), *self.nb.page.problems]
