"""The whole proof, on whatever device there is, and its report."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tuneloop import __version__
from tuneloop.language import t
from tuneloop.model import sources
from tuneloop.plan.hardware import look
from tuneloop.proof import kernels, parity, speed, subject, training
from tuneloop.proof.lines import Line, Lines, NotRunError, Say

REAL = "smollm2-135m-instruct"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash_attn", "triton")


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
        count = {v: sum(line.verdict == v for line in self.lines) for v in ("passed", "failed", "refused", "not run")}
        told = t("{passed} passed, {failed} failed, {refused} refused with a code, {absent} not run, in {n:.0f} s",
                 passed=count["passed"], failed=count["failed"], refused=count["refused"], absent=count["not run"],
                 n=self.seconds)  # fmt: skip
        return told if torch.cuda.is_available() else told + t(". No CUDA device: these lines ran on the CPU")

    def markdown(self) -> str:
        """The report as a page that can be posted as it is."""
        rows = [line.row() for line in self.lines]
        facts = [f"| {name} | {_cell(value)} |" for name, value in self.facts]
        table = [f"| {verdict} | {_cell(what)} | {_cell(detail)} |" for verdict, what, detail in rows]
        return "\n".join([
            f"# {t('tuneloop: proof on this machine')}", "", f"{self.closing()}{t('.')}", "",
            f"| {t('fact')} | {t('value')} |", "|---|---|", *facts, "",
            f"| {t('result')} | {t('claim')} | {t('measured')} |", "|---|---|---|", *table, "",
        ])  # fmt: skip


def _cell(text: str) -> str:
    """
    >>> _cell("a|b\\nc")
    'a\\\\|b c'
    """
    return " ".join(text.replace("|", "\\|").split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    """The version of NVIDIA's driver, "" where the system does not tell."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def facts(device: torch.device) -> list[tuple[str, str]]:
    """What the report names: device, driver, types, versions."""
    machine = look()
    found = [(t("device"), ", ".join(machine.gpus) or t("no CUDA device: these lines ran on the CPU")),
             (t("processor"), f"{machine.cpu}, {machine.cores}"),
             (t("system"), f"{machine.system}, Python {platform.python_version()}"),
             ("tuneloop", __version__)]  # fmt: skip
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found[1:1] = [
            (t("memory"), f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"),
            (t("compute capability"), capability),
            (t("driver, CUDA, cuDNN"), f"{_driver() or '–'}, {torch.version.cuda}, {torch.backends.cudnn.version()}"),
        ]
    return found + [(name, version) for name in PACKAGES if (version := _version(name))]


def _halves(device: torch.device) -> list[str]:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ["float16"]
    return ["bfloat16", "float16"]


def prove(say: Say, *, tiny_only: bool = False) -> Proof:
    """All lines, each told as it stands. On a CPU about a minute and a half with SmolLM2, half a minute `tiny_only`."""
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = Lines(say)
    if device.type == "cpu":
        say(t("no CUDA device: these lines ran on the CPU"))
    deterministic = torch.are_deterministic_algorithms_enabled()
    with tempfile.TemporaryDirectory(prefix="tuneloop-proof-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        ground = training.Ground(folder, subject.model_folder(folder / "tiny"), longest=200)
        kernels.prove(lines, device)
        training.equal_recipes(ground, lines)
        training.types(ground, lines, _halves(device))
        training.combinations(ground, lines)
        parity.prove(lines, ground, device, "tiny")
        if not tiny_only:
            _with_a_real_model(lines, folder / "real", device)
    torch.use_deterministic_algorithms(deterministic)
    return Proof(tuple(facts(device)), tuple(lines.lines), round(time.perf_counter() - began, 1))


def _with_a_real_model(lines: Lines, folder: Path, device: torch.device) -> None:
    cached = {m.name: m.path for m in sources.listing() if m.cached}
    if REAL not in cached:

        def absent() -> str:
            raise NotRunError(t("it is not pulled: tuneloop model pull {name}", name=REAL))

        lines.claim(t("speed"), REAL, absent)
        return
    folder.mkdir()
    ground = training.Ground(folder, cached[REAL])
    parity.prove(lines, ground, device, REAL)
    speed.measure(lines, ground, device, 20 if device.type == "cuda" else 3, REAL)


def write(proof: Proof, path: Path) -> None:
    """The Markdown report."""
    path.write_text(proof.markdown(), encoding="utf-8")
