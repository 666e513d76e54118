"""tuneloop doctor: what this machine can do, what is missing, and the remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.environment import environment
from tuneloop.base.language import listed, sentences, t
from tuneloop.base.optional import install
from tuneloop.cli import show
from tuneloop.planning import driver as drivers
from tuneloop.planning.driver import Driver

ANSWER_SECONDS = 20.0
"""How long all servers together have to take a notification."""
CORE = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "gguf", "pyarrow")
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "aiohttp", "prometheus_client", "python_multipart"), "rate": ("evalica", "nltk"),
    "gunicorn": ("gunicorn", "uvicorn_worker"), "redis": ("redis",), "postgres": ("psycopg",), "gguf": ("xllamacpp",),
    "schema": ("llguidance",), "qlora": ("bitsandbytes",), "nvml": ("pynvml",), "modelscope": ("modelscope",),
    "dvc": ("dvc",), "eval": ("lm_eval",), "trackio": ("trackio",), "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "alembic"), "notify": ("apprise",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fine` is false where something cannot be done; `remedy` says how to mend it, and `line` is
    the command to type for it."""

    what: str
    value: str
    fine: bool
    remedy: str = ""
    line: str = ""


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packages() -> list[Finding]:
    findings = [
        Finding(
            name,
            _package(name) or t("missing"),
            bool(_package(name)),
            *(() if _package(name) else (_below(), install())),
        )
        for name in CORE
    ]
    for extra, modules in EXTRAS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        state = t("installed") if not absent else t("not installed")
        remedy = (_below(), install(extra)) if absent else ()
        findings.append(Finding(t("extra {name}", name=extra), state, not absent, *remedy))
    return findings


def _machine() -> list[Finding]:
    """What needs torch to be looked at; where that does not load, why."""
    try:
        import torch
    except (ImportError, OSError) as error:  # on Windows a DLL that is missing is an OSError
        return [Finding("torch", str(error), False, *_torch_remedy(error)), card("", ())]
    from tuneloop.planning.hardware import look
    from tuneloop.planning.planner import QUIET

    machine = look(torch.float32)
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [
        Finding("Python", python, sys.version_info >= (3, 11), "" if sys.version_info >= (3, 11) else "Python 3.11+"),
        Finding(t("processor"), f"{machine.cpu}, {machine.cores}", True),
        Finding(t("speed in float32"), t("{n} GFLOP/s", n=f"{machine.gflops:.0f}"), True),
        Finding(t("other programs"), t("cores busy: {n} of {all}", n=f"{machine.others:.1f}", all=machine.all_cores),
                machine.spare > QUIET, "" if machine.spare > QUIET else t("Close them, or expect longer runs.")),
        Finding(
            t("memory"), t("{free} of {all} GB free", free=machine.free_gb, all=machine.memory_gb), machine.free_gb > 4,
            "" if machine.free_gb > 4 else t("Close other programs: the demo needs about 4 GB."),
        ),
        card(torch.__version__, machine.gpus),
    ]  # fmt: skip
    free = shutil.disk_usage(_existing()).free / 1e9
    findings.append(
        Finding(
            t("disk"),
            t("{n} GB free in {path}", n=f"{free:.0f}", path=environment().home),
            free > 3,
            "" if free > 3 else t("Free some space, or set TUNELOOP_HOME to a larger disk."),
        )
    )
    return findings


def _below() -> str:
    return t("the line below")


def _torch_remedy(error: Exception) -> tuple[str, str]:
    """What to do where torch does not load, and the line to type."""
    if sys.platform == "win32" and not isinstance(error, ModuleNotFoundError):
        return t("Install the Microsoft Visual C++ Redistributable (x64), then try again."), ""
    return _below(), install()


def card(torch: str, usable: Sequence[str], driver: Driver | None = None) -> Finding:
    """The graphics cards: those that this version of torch uses, else the pip line of the build that the driver takes.

    `driver` is for tests; by default it is looked for.
    """
    what = t("graphics card")
    if usable:
        return Finding(what, listed(usable), True)
    driver = driver or drivers.look()
    if driver is None:
        remedy = t("Training runs on the CPU. For an NVIDIA card install its driver, then ask again.")
        return Finding(what, t("none that this torch can use"), False, remedy)
    cuda = ".".join(map(str, driver.cuda))
    state = t(
        "{cards}, driver {version} (CUDA {cuda}); not used by this torch ({torch})",
        cards=listed(driver.cards) or "NVIDIA",
        version=driver.version,
        cuda=cuda,
        torch=torch or t("missing"),
    )
    build = drivers.build_for(driver, torch or _package("torch") or drivers.NEWEST)
    if build is None:
        return Finding(
            what,
            state,
            False,
            t(
                "No build of this torch runs here: bring the driver up to date "
                "(580 or newer), then ask again; until then the CPU trains."
            ),
        )
    if torch.endswith(f"+{build.name}"):
        return Finding(
            what,
            state,
            False,
            t(
                "torch is the right build ({name}). Restart the machine after a driver's "
                "update, and see that CUDA_VISIBLE_DEVICES hides no card.",
                name=build.name,
            ),
        )
    hint = t("The driver takes torch's build {name}: the line below.", name=build.name)
    where = t("INDEX is what pytorch.org shows under Get Started behind --index-url, without its last part.")
    return Finding(what, state, False, sentences(hint, where) if build.index else hint, build.line)


def _existing() -> str:
    home = environment().home
    return str(next(p for p in (home, *home.parents) if p.exists()))


def _models() -> list[Finding]:
    from tuneloop.hub import resolve

    cached = [m.name for m in resolve.listing() if m.cached]
    hub = environment().hub_endpoint or t("the library's own")
    return [
        Finding(
            t("models in the cache"),
            listed(cached) or t("none"),
            True,
            "" if cached else show.command("model", "pull", "smollm2"),
        ),
        Finding(
            t("model hub"),
            t("offline") if environment().offline else hub,
            True,
            t("A mirror: export HF_ENDPOINT=https://…; a folder on disk works as well."),
        ),
    ]


def _prove(report: Path, json: bool) -> None:
    from tuneloop.selftest.prove import prove, write

    proof = prove(show.say)
    write(proof, report)
    if json:
        show.as_json(proof.as_dict())
    else:
        rows = [line.row() for line in proof.lines]
        show.table(t("Proof on this machine"), [t("result"), t("claim"), t("measured")], rows)
    show.say(proof.closing() + t("."))
    show.say(t("The report to post: {path}", path=report))
    if not proof.held:
        raise typer.Exit(1)


def _notify(file: Path, json: bool) -> None:
    """Send a message to all addresses at once, and say which took it; exits with 2 where one did not."""
    from tuneloop.monitor.notify import Recipient, addresses
    from tuneloop.monitor.outbox import Outbox

    words = t("This is a test: notifications of training runs arrive here.")
    recipients, taken = addresses(file), set[int]()

    def send(one: Recipient) -> None:
        one.send("tuneloop", words, "info")
        taken.add(one.line)

    boxes = [Outbox(f"notify-{one.line}", lambda error: None) for one in recipients]
    for one, box in zip(recipients, boxes, strict=True):
        box.put(partial(send, one))
    until = time.monotonic() + ANSWER_SECONDS
    for box in boxes:
        box.close(until - time.monotonic())
    remedy, findings = t("Is the address right, and the server within reach?"), []
    for one in recipients:
        what, fine = t("line {n}, {service}", n=one.line, service=one.name), one.line in taken
        findings.append(Finding(what, t("taken") if fine else t("not taken"), fine, "" if fine else remedy))
    if json:
        show.as_json([asdict(f) for f in findings])
    else:
        _table(t("Notifications"), findings)
    if not all(one.fine for one in findings):
        raise typer.Exit(2)


def _table(title: str, findings: Sequence[Finding]) -> None:
    rows = [("✓" if f.fine else "–", f.what, f.value, f.remedy) for f in findings]
    show.table(title, ["", t("what"), t("value"), t("remedy")], rows)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    proof: Annotated[
        bool, typer.Option("--proof", help="Train, compare and measure here; on a graphics card if there is one.")
    ] = False,
    report: Annotated[Path, typer.Option("--report", help="Where --proof writes its report.")] = Path(
        "tuneloop-proof.md"
    ),
    notify: Annotated[
        Path | None, typer.Option("--notify", help="Send a message to each address of this file, and do no more.")
    ] = None,
) -> None:
    """Look at this machine: what it can do, what is missing, what to do about it.

    Examples: tuneloop doctor | tuneloop doctor --proof | tuneloop doctor --notify addresses.txt
    """
    if proof:
        return _prove(report, json)
    if notify is not None:
        return _notify(notify, json)
    findings = [*_machine(), *_packages(), *_models()]
    if json:
        show.as_json([asdict(f) for f in findings])
        return
    _table(t("This machine"), findings)
    for one in findings:
        if one.line:  # outside of the table, where a long line can be copied whole
            print(f"{one.what}\n  {one.line}")
