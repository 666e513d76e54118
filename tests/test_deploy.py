"""The files in deploy/: linted by the tools of their kinds, and held to what tuneloop itself knows. Images are not built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneloop.base import environment
from tuneloop.serving.settings import config_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSES = ("compose.yaml", "compose-vllm.yaml")
BINARIES = Path(sys.executable).parent


def linted(name: str, *arguments: str) -> None:
    """Fails where a lint finds something; skipped, but in CI failed, where it is not installed."""
    program = shutil.which(name, path=f"{BINARIES}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no {name} in CI")
        pytest.skip(f"no {name} here; it comes with the extra dev, systemd-analyze with Debian's systemd")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile() -> None:
    linted("hadolint", str(DEPLOY / "Dockerfile"))


def test_manifests() -> None:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        linted("kubernetes-validate", "--strict", str(path))


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "tuneloop.service").read_text(encoding="utf-8")
    program = "/opt/tuneloop/venv/bin/tuneloop"
    assert program in text
    unit = tmp_path / "tuneloop.service"  # the program is looked for: here it lies elsewhere
    unit.write_text(text.replace(program, sys.executable), encoding="utf-8")
    linted("systemd-analyze", "verify", "--man=no", str(unit))


@pytest.mark.parametrize("name", COMPOSES)
def test_compose(name: str) -> None:
    content = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    services: dict[str, dict[str, Any]] = content["services"]
    defined = {kind: set(content.get(kind, {})) for kind in ("configs", "secrets", "volumes")}
    example = set(re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", (DEPLOY / name).read_text(encoding="utf-8"))) <= example
    targets = set(re.findall(r" AS (\w+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")))
    for about in services.values():
        assert re.search(r":v?\d", about["image"]), "a version, not `latest`"
        if "build" in about:
            assert (DEPLOY / about["build"]["context"] / about["build"]["dockerfile"]).is_file()
            assert about["build"]["target"] in targets
        assert {one["source"] for one in about.get("configs", ())} <= defined["configs"]
        assert set(about.get("secrets", ())) <= defined["secrets"]
        assert set(about.get("depends_on", ())) <= set(services)
        mounted = {one.partition(":")[0] for one in about.get("volumes", ())}
        assert {one for one in mounted if re.match(r"\w+$", one)} <= defined["volumes"]
        assert known_variables(about.get("environment", {}))
    for host in config_hosts(content):
        assert host in services
    assert services["gateway"]["ports"] == ["127.0.0.1:8000:8000"], "TLS is for what stands in front"


def known_variables(names: Any) -> bool:
    """Whether each variable of ours is one that tuneloop reads."""
    text = Path(environment.__file__).read_text(encoding="utf-8")
    return all(name in text for name in names if name.startswith("TUNELOOP"))


def config_hosts(content: dict[str, Any]) -> set[str]:
    """Services that the mounted settings name."""
    paths = [DEPLOY / one["file"] for one in content["configs"].values()]
    return {re.split(r"[/:]+", url)[1] for path in paths for url in config_settings(path).upstreams}


def test_settings_leave_time_to_drain() -> None:
    """Whatever ends the server waits longer than the server itself does."""
    drains = [config_settings(path).drain for path in (*DEPLOY.glob("serve*.yaml"), DEPLOY / "model.yaml")]
    [config] = [one for one in _manifests() if one["kind"] == "ConfigMap"]
    drains.append(yaml.safe_load(config["data"]["serve.yaml"])["serve"]["drain"])
    [deployment] = [one for one in _manifests() if one["kind"] == "Deployment"]
    waits = [deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]]
    waits += map(int, re.findall(r"TimeoutStopSec=(\d+)", (DEPLOY / "tuneloop.service").read_text(encoding="utf-8")))
    waits += map(
        int, re.findall(r"graceful_timeout = (\d+)", (DEPLOY / "gunicorn.conf.py").read_text(encoding="utf-8"))
    )
    for name in COMPOSES:
        waits += map(int, re.findall(r"stop_grace_period: (\d+)s", (DEPLOY / name).read_text(encoding="utf-8")))
    assert len(waits) >= 6
    assert max(drains) + 10 < min(waits)


def _manifests() -> list[dict[str, Any]]:
    paths = (DEPLOY / "kubernetes").glob("*.yaml")
    return [one for path in paths for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def test_the_gateways_packages_are_ours_and_without_torch() -> None:
    text = (DEPLOY / "gateway.txt").read_text(encoding="utf-8")
    names = {line.partition("[")[0].lower() for line in text.splitlines() if line and not line.startswith("#")}
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    assert {name.replace("_", "-") for name in names} <= pinned
    assert not names & {"torch", "transformers", "peft", "pyarrow", "accelerate"}
