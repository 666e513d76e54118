"""The environment, read in this one place. Every variable tuneloop knows is a field here and in docs/*/settings.md."""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.base.cgroups import ControlGroup, control_groups

_NAMES = {
    "en": {"en", "eng", "english", "英文", "英语"},
    "zh": {"zh", "cn", "zho", "chi", "chs", "cht", "hans", "hant", "chinese", "zhongwen", "中文", "汉语", "简体中文"},
}


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process environment says. Read anew by `environment()`, so a test can change it."""

    home: Path
    """TUNELOOP_HOME: the cache of base models; default ~/.cache/tuneloop."""
    language: str
    """TUNELOOP_LANG, else LC_ALL, LC_MESSAGES, LANG: "en" or "zh"; what TUNELOOP_LANG says where that is neither."""
    offline: bool
    """TUNELOOP_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE set to 1: never ask a hub."""
    hub_endpoint: str
    """HF_ENDPOINT: another address for the model hub; empty means the library's own."""
    endpoint_key: str = field(repr=False)
    """TUNELOOP_ENDPOINT_KEY: the key for an endpoint (`prepare.augment.endpoint`, --endpoint); it is in no file."""
    upstream_key: str = field(repr=False)
    """TUNELOOP_UPSTREAM_KEY: the key for the upstreams of `tuneloop serve`; it is in no file."""
    redis: str = field(repr=False)
    """TUNELOOP_REDIS: the Redis of `tuneloop serve` where the recipe names none; it may have a password in it."""
    store: str = field(repr=False)
    """TUNELOOP_STORE: the database's URL for keys, replies, feedback and batches; empty means the workspace's file."""
    user_secret: str = field(repr=False)
    """TUNELOOP_USER_SECRET: what users' names are hashed with where several machines share a database or a Redis."""
    served: str
    """TUNELOOP_SERVE: what the application of tuneloop.serving.asgi serves, as `tuneloop serve` takes it."""
    serve_config: str
    """TUNELOOP_SERVE_CONFIG: its recipe, in whose section `serve` the settings stand."""
    serve_workspace: Path
    """TUNELOOP_SERVE_WORKSPACE: its folder of runs/ and models/; default the working folder."""
    metrics_folder: str
    """PROMETHEUS_MULTIPROC_DIR: a folder in which the workers of a server share their counts."""
    verbose: bool
    """TUNELOOP_DEBUG=1: show the Python traceback of an unexpected error."""
    wandb_mode: str
    """WANDB_MODE: whether the tracker wandb sends anything; default offline."""
    swanlab_mode: str
    """SWANLAB_MODE: whether the tracker swanlab sends anything; default offline."""
    trackers_elsewhere: frozenset[str]
    """Which of TRACKIO_DIR, WANDB_DIR, SWANLAB_LOG_DIR and MLFLOW_TRACKING_URI are set: those trackers write there."""


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def named(text: str) -> str:
    """The language that a word means, in any case and with any region or encoding behind it; "" for none of ours.

    >>> [named(word) for word in ("zh", "zh_CN.UTF-8", "CN", "Chinese", "en-GB", "fr", "")]
    ['zh', 'zh', 'zh', 'zh', 'en', '', '']
    """
    word = re.split(r"[-_.@]", text.strip().lower())[0]
    return next((language for language, names in _NAMES.items() if word in names), "")


def spoken() -> str:
    """The language that the environment asks for; what TUNELOOP_LANG says where that is none of ours."""
    get = os.environ.get
    own = get("TUNELOOP_LANG", "").strip()
    if own:  # a wrong word there was meant for us, so it is kept, to be told
        return named(own) or own
    return named(get("LC_ALL") or get("LC_MESSAGES") or get("LANG") or "") or "en"


def environment() -> Environment:
    """The environment as it is now."""
    get = os.environ.get
    return Environment(
        home=Path(get("TUNELOOP_HOME") or Path.home() / ".cache" / "tuneloop").expanduser(),
        language=spoken(),
        offline=_flag("TUNELOOP_OFFLINE") or _flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE"),
        hub_endpoint=get("HF_ENDPOINT", ""),
        endpoint_key=get("TUNELOOP_ENDPOINT_KEY", ""),
        upstream_key=get("TUNELOOP_UPSTREAM_KEY", "").strip(),
        redis=get("TUNELOOP_REDIS", "").strip(),
        store=get("TUNELOOP_STORE", "").strip(),
        user_secret=get("TUNELOOP_USER_SECRET", "").strip(),
        served=get("TUNELOOP_SERVE", ""),
        serve_config=get("TUNELOOP_SERVE_CONFIG", ""),
        serve_workspace=Path(get("TUNELOOP_SERVE_WORKSPACE") or "."),
        metrics_folder=get("PROMETHEUS_MULTIPROC_DIR", ""),
        verbose=_flag("TUNELOOP_DEBUG"),
        wandb_mode=get("WANDB_MODE", "").strip() or "offline",
        swanlab_mode=get("SWANLAB_MODE", "").strip() or "offline",
        trackers_elsewhere=frozenset(name for name in _PLACES if get(name, "").strip()),
    )


_PLACES = ("TRACKIO_DIR", "WANDB_DIR", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI")
"""Where the trackers' own variables say that a run's figures go."""


def quiet_trackers() -> None:
    """Set what trackers read when they are imported, unless it is set: they report nothing about their use."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `accelerate launch` tell each process of a run."""
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What says how many processes there are: torch's word, and those of MPI, to which accelerate listens as well."""


def launch() -> tuple[int, list[str], list[str]]:
    """What a launcher has said: the number of processes, what it said as "NAME=value", and which names are missing.

    Most of it may be left over from another program.
    """
    variables = {name: os.environ.get(name, "").strip() for name in (*LAUNCHED, *_COUNTS)}
    count, by_mpi = (
        max([1, *(int(variables[name]) for name in names if variables[name].isdigit())])
        for names in (_COUNTS, _COUNTS[1:])
    )
    needed = LAUNCHED if by_mpi == 1 else ("MASTER_ADDR",)  # MPI has words of its own for the others
    return count, [f"{k}={v}" for k, v in variables.items() if v], [name for name in needed if not variables[name]]


def _tied() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use at once, at least 1: those it is tied to, or fewer where a control group has a
    limit (`control_groups` says what `own` and `root` are)."""
    quotas = [_quota(group) for group in control_groups("cpu", own, root)]
    return max(1, math.ceil(min([float(_tied()), *filter(None, quotas)])))


def _quota(group: ControlGroup) -> float:
    """Cores that one control group may use, 0 where it has no limit; version 2 has one file for it, version 1 two."""
    try:
        if group.version == 2:
            most, period = (group.folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            most, period = ((group.folder / f"cpu.cfs_{n}_us").read_text(encoding="ascii") for n in ("quota", "period"))
        return max(0.0, int(most) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such files
        return 0.0


def waits_our_way() -> bool:
    """Whether OpenMP's threads wait as `quiet_libraries` has set it: OMP_WAIT_POLICY and GOMP_SPINCOUNT are ours."""
    return os.environ.get("OMP_WAIT_POLICY") == "passive" and os.environ.get("GOMP_SPINCOUNT") == "3000"


def quiet_console() -> None:
    """For a command line, before transformers is imported: it tells errors only, unless its variable is set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def quiet_libraries() -> None:
    """Set what the libraries below us read from the environment, unless it is set: no telemetry, advice or spinning.

    `import tuneloop` does it, whatever is imported of it: most of it is read once, when torch or a library is loaded.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A line a layer and step on how it computes; peft imports it wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # cuBLAS sums in the same order each time; it reads this when the first product is made on a card.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads of a product wait for the last of them. By default they spin meanwhile, and take the core that another
    # program or the last thread itself needs: a step beside a busy program took 2 to 15 times as long. Sleeping at once
    # costs a quiet machine 16 % (they wake late), spinning 2,500 times 5 %, 3,000 times 1 %; beside a busy core a step
    # is then 2.3 times as long, and was 3.8 times with 20,000 (python -m benchmarks busy); training/waiting.py does the
    # rest. OpenMP reads both when torch is first imported; GNU's goes by the count, others by the policy.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # OpenMP sees which cores a process is tied to, and not how much of them a container may use.
    if (usable := cores()) < _tied():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))
    # oneDNN keeps the code of the last 1,024 products it made, a megabyte each where bfloat16 is multiplied; rows of
    # every length then grow a run by 20 MB a step. A step itself has about thirty different ones.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
