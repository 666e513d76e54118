"""The whole proof, on whatever device there is, in this process: what `tuneloop doctor --proof` runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tuneloop.base.language import t
from tuneloop.selftest import device, report
from tuneloop.selftest.lines import Line, Lines, Say
from tuneloop.selftest.sections import SECTIONS, ProofSection


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. `facts` are what the lines hold for: versions, device, driver."""

    facts: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether no line failed."""
        return all(line.verdict != "failed" for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"held": self.held}

    def closing(self) -> str:
        """The last line of the report."""
        return report.closing(self.lines, self.seconds, on_card=torch.cuda.is_available())

    def markdown(self) -> str:
        """The report as a page that can be posted as it is."""
        return report.page(self.closing(), self.facts, self.lines)


def prove(say: Say, sections: Sequence[ProofSection] = SECTIONS) -> Proof:
    """The lines of all sections, each told as it stands. On a CPU about two minutes with SmolLM2."""
    began = time.perf_counter()
    lines = Lines(say)
    if not torch.cuda.is_available():
        say(t("no CUDA device: these lines ran on the CPU"))
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with tempfile.TemporaryDirectory(prefix="tuneloop-proof-", ignore_cleanup_errors=True) as place:
        for k, section in enumerate(sections):
            folder = Path(place, str(k))
            folder.mkdir()
            section.prove(lines, folder)
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    return Proof(tuple(device.facts()), tuple(lines.lines), round(time.perf_counter() - began, 1))


def write(proof: Proof, path: Path) -> None:
    """The Markdown report."""
    path.write_text(proof.markdown(), encoding="utf-8")
