"""Pages looked at by a real browser: Chromium without a window."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser's program; a test is skipped where there is none, but fails in CI."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium in CI")
        pytest.skip("no Chromium here")
    return found


def chinese_fonts() -> None:
    """Skips (in CI: fails) where no font has Chinese characters: they would be drawn as boxes."""
    program = shutil.which("fc-list")
    listed = subprocess.run([program, ":lang=zh"], capture_output=True, text=True).stdout if program else ""
    if not listed.strip():
        if os.environ.get("CI") == "true":
            pytest.fail("no font with Chinese characters in CI")
        pytest.skip("no font with Chinese characters here")


def _run(tmp_path: Path, page: Path, width: int, height: int, *more: str) -> str:
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}", *more, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def screenshot(tmp_path: Path, page: Path, width: int, height: int, *, dark: bool = False) -> Path:
    """A PNG of the page in a window of this size."""
    out = tmp_path / f"{page.stem}-{width}-{'dark' if dark else 'light'}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(tmp_path, page, width, height, scheme, f"--screenshot={out}")
    return out


def in_both_languages(tmp_path: Path, page: Path, width: int) -> dict[str, dict[str, Any]]:
    """Language -> what a reader sees after a click on its label in a window of this width: text (what is not hidden),
    wide (the pixels that the page needs), outside (elements that stick out of it)."""
    script = """addEventListener("load", () => {
      const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement, told = {}
      for (const language of ["en", "zh"]) {
        inner.querySelector(`label[for=${language}]`).click()
        inner.querySelectorAll("details").forEach(one => one.open = true)
        const out = [...inner.querySelectorAll("main *")].filter(
          e => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll, .text"))
        told[language] = {text: inner.querySelector("main").innerText, wide: root.scrollWidth, outside: out.length}
      }
      document.title = encodeURIComponent(JSON.stringify(told))
    })"""
    title = _title_of(tmp_path, page, script, width)
    told: dict[str, dict[str, Any]] = json.loads(unquote(title))
    return told


def _title_of(tmp_path: Path, page: Path, script: str, width: int) -> str:
    """The title that a script gives to a window with the page in a frame so many pixels wide.

    The page forbids scripts; a copy of it without that rule is asked. A window has a least width of its own, a frame has none.
    """
    text = page.read_text(encoding="utf-8").replace('http-equiv="Content-Security-Policy"', 'name="no-policy"')
    window = tmp_path / "window.html"
    window.write_text(
        f'<!doctype html><title></title><script>{script}</script><iframe style="width: {width}px; height: 800px; '
        f'border: 0" srcdoc="{html.escape(text)}"></iframe>',
        encoding="utf-8",
    )
    return _run(tmp_path, window, 1400, 1000, "--dump-dom").partition("<title>")[2].partition("</title>")[0]


def measured(tmp_path: Path, page: Path, width: int) -> dict[str, int]:
    """wide, tall: the pixels that the page needs in a window of this width; outside: elements that stick out of it."""
    script = """addEventListener("load", () => {
      const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement
      const out = [...inner.querySelectorAll("main *")].filter(
        e => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll, .text"))
      document.title = [root.scrollWidth, root.scrollHeight, out.length].join(" ")
    })"""
    title = _title_of(tmp_path, page, script, width)
    wide, tall, outside = map(int, title.split())
    return {"wide": wide, "tall": tall, "outside": outside}
