"""The peers' Python interpreters. Each peer lives in an environment of its own, made once under .bench/.

TUNELOOP_BENCH_TRL and TUNELOOP_BENCH_LLAMAFACTORY name ready interpreters instead. This is the only place that makes
environments; `prepare.py` reads the same two variables, which `ready` sets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench"
"""Everything that the benchmark makes: environments, results, work folders. Git leaves it alone."""
VARIABLES = {"trl": "TUNELOOP_BENCH_TRL", "llamafactory": "TUNELOOP_BENCH_LLAMAFACTORY"}
TORCH = "torch==2.13.0"
# torch comes first: pip takes a newer one, or one with CUDA, when it chooses by itself.
PACKAGES = {
    "trl": ["trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"],
    "llamafactory": ["llamafactory==0.9.5"],
}


def home() -> Path:
    """.bench/, made if need be, with a file that keeps it out of version control."""
    HOME.mkdir(exist_ok=True)
    ignore = HOME / ".gitignore"
    if not ignore.is_file():
        ignore.write_text("*\n", encoding="utf-8")
    return HOME


def interpreter(peer: str, torch_args: list[str] | None = None) -> str:
    """The Python that runs a peer: the one that its variable names, else that of .bench/<peer>, made if need be."""
    named = os.environ.get(VARIABLES[peer], "")
    if named:
        return named
    folder = home() / peer
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").is_file():
        print(f"Installing {' '.join(PACKAGES[peer])} into .bench/{peer} (once) ...", file=sys.stderr, flush=True)
        _make(peer, folder, python, torch_args or [])
        (folder / "complete").touch()
    return str(python)


def _make(peer: str, folder: Path, python: Path, torch_args: list[str]) -> None:
    def pip(*words: str) -> None:
        # stdout is for results: pip's own words go where warnings go
        subprocess.run([python, "-m", "pip", *words], check=True, stdout=sys.stderr)

    quiet = ["install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip(*quiet, *torch_args, TORCH)
    pip(*quiet, TORCH, *PACKAGES[peer])
    if peer == "llamafactory":
        # They come with it, and do not load beside a torch for the CPU; it imports torchaudio by name all the same.
        pip("uninstall", "--quiet", "--yes", "torchvision", "torchaudio")
        place = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = Path(subprocess.run(place, check=True, capture_output=True, text=True).stdout.strip())
        (packages / "torchaudio").mkdir(exist_ok=True)
        (packages / "torchaudio" / "__init__.py").touch()


def ready(torch_args: list[str] | None = None) -> dict[str, str]:
    """Both peers' interpreters; a peer that cannot be installed is told and left out."""
    found = {}
    for peer, variable in VARIABLES.items():
        try:
            found[peer] = interpreter(peer, torch_args)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer} cannot be installed, so it is left out: {error}", file=sys.stderr)
            continue
        os.environ[variable] = found[peer]
    return found
