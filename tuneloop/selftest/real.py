"""The proof's section on a real model, where one is pulled."""

from __future__ import annotations

from pathlib import Path

from tuneloop.base.language import t
from tuneloop.hub import resolve
from tuneloop.selftest import device, parity, speed, training
from tuneloop.selftest.lines import Lines, NotRunError


def prove(lines: Lines, folder: Path, name: str) -> None:
    """Its loss is transformers', its export answers as its run; and what training it costs."""
    cached = {m.name: m.path for m in resolve.listing() if m.cached}
    if name not in cached:

        def absent() -> str:
            raise NotRunError(t("it is not pulled: tuneloop model pull {name}", name=name))

        lines.claim(t("speed"), name, absent)
        return
    ground, place = training.Ground(folder, cached[name]), device.here()
    parity.prove(lines, ground, place, name)
    steps = 20 if place.type == "cuda" else 3
    speed.measure(lines, ground, place, speed.Workload(steps, targets=["q_proj", "v_proj"]), name)
