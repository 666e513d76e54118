"""Notifications arrive: real servers on this machine take what each service's plugin of apprise sends."""

from __future__ import annotations

import email
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from email.policy import default
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.robots import Robots, listening
from tuneloop.base import language
from tuneloop.base.errors import RecipeError
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.notify import Notifier, addresses
from tuneloop.monitor.remedies import Remedy

pytest.importorskip("apprise", reason="the extra notify is not installed")
SPIKE = Alert("nan", "bad", 31, 31, {})
SECRET = "a" * 20


@pytest.fixture
def robots() -> Iterator[Robots]:
    with listening() as server:
        yield server


class Post(socketserver.StreamRequestHandler):
    """As much of SMTP as a sender of one message needs."""

    letters: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while word := self.rfile.readline():
            command = word[:4].upper()
            if command == b"EHLO":
                self.wfile.write(b"250-here\r\n250 AUTH PLAIN LOGIN\r\n")
            elif command == b"AUTH":
                self.wfile.write(b"235 in\r\n")
            elif command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                letter = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    letter += line
                self.letters.append(letter)
                self.wfile.write(b"250 taken\r\n")
            elif command == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 ok\r\n")


def plugin(monkeypatch: pytest.MonkeyPatch, name: str, attribute: str, address: str) -> None:
    """The address of a service's server is a constant of apprise's class for it."""
    from apprise.manager_plugins import NotificationManager

    monkeypatch.setattr(NotificationManager()[name], attribute, address)


def notifier(folder: Path, *lines: str, **options: Any) -> tuple[Notifier, list[str]]:
    said: list[str] = []
    file = folder / "addresses.txt"
    file.write_text("# who is told\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return Notifier("demo-1", addresses(file), options.get("level", "watch"), said.append), said


TEXTS: dict[str, tuple[str, str, str, Any]] = {
    "dingtalk": (f"dingtalk://{SECRET}", "notify_url", "/dingtalk/{token}", lambda b: json.dumps(b, ensure_ascii=False)),
    "feishu": (f"feishu://{SECRET}", "notify_url", "/feishu/{token}/", lambda b: b["content"]["text"]),
    "wecombot": (f"wecombot://{SECRET}", "notify_url", "/wecom?key={key}", lambda b: b["text"]["content"]),
    "slack": ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#runs", "webhook_url", "/slack",
              lambda b: b["attachments"][0]["text"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("tongue", language.LANGUAGES)
def test_an_alert_arrives_in_the_form_of_each_service(
    name: str, tongue: str, robots: Robots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, attribute, path, text = TEXTS[name]
    plugin(monkeypatch, name, attribute, robots.at + path)
    with language.speaking(tongue):
        tells, said = notifier(tmp_path, address)
        tells.alerted(SPIKE)
        tells.close()
    assert said == []
    ((asked, body),) = robots.got
    assert asked.startswith("/" + path.split("/")[1].split("?")[0])
    arrived = text(json.loads(body))
    assert "demo-1" in arrived
    assert "TL-WATCH-NAN" in arrived
    assert {"en": "step 31, bad", "zh": "第 31 步，"}[tongue] in arrived


def test_a_letter_arrives(tmp_path: Path) -> None:
    Post.letters.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Post) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        port = server.server_address[1]
        with language.speaking("zh"):
            to = f"mailto://me:{SECRET}@127.0.0.1:{port}?mode=insecure&from=run@example.org&to=me@example.org"
            tells, said = notifier(tmp_path, to)
            tells.remedied(Remedy("stop", 40, 20, facts={"at": 20, "best": 1.25, "loss": 1.5}))
            tells.close()
        server.shutdown()
    assert said == []
    letter = email.message_from_bytes(Post.letters[0], policy=default)
    part = letter.get_body(("plain", "html"))
    assert part is not None
    assert letter["to"].endswith("me@example.org") or "me@example.org" in letter["to"]
    assert "demo-1" in letter["subject"]
    assert "TL-REMEDY-STOP" in part.get_content()
    assert "第 40 步" in part.get_content()


def test_levels_below_the_wanted_one_are_not_told(robots: Robots, tmp_path: Path) -> None:
    tells, _ = notifier(tmp_path, f"json://{robots.at[7:]}", level="bad")
    for level in ("good", "note", "watch"):
        tells.alerted(Alert("nan", level, 3, 3, {}))  # type: ignore[arg-type]
    tells.alerted(SPIKE)
    tells.close()
    assert [json.loads(body)["type"] for _, body in robots.got] == ["failure"]


def test_a_slow_server_delays_nobody_and_a_refusal_is_said_once_without_the_address(
    robots: Robots, tmp_path: Path
) -> None:
    robots.status, robots.delay = 500, 0.3
    tells, said = notifier(tmp_path, f"json://me:{SECRET}@{robots.at[7:]}")
    tells.alerted(SPIKE)
    tells.alerted(SPIKE)
    assert len(robots.got) < 2  # the servers are still at it
    tells.close()
    assert len(robots.got) == 2
    assert len(said) == 1
    assert "addresses.txt, line 3: JSON" in said[0]
    assert SECRET not in said[0]


def test_the_end_does_not_wait_for_ever(robots: Robots, tmp_path: Path) -> None:
    robots.delay = 3.0
    tells, said = notifier(tmp_path, f"json://{robots.at[7:]}")
    tells.tell("x", [], "info")
    began = time.monotonic()
    tells.close(0.2)
    assert time.monotonic() - began < robots.delay
    assert len(said) == 1


def test_a_wrong_line_is_told_by_its_number_and_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"# one\njson://localhost\nnosuch://{SECRET}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        addresses(file)
    assert (caught.value.code, caught.value.where) == ("TL-RECIPE-NOTIFY-ADDRESS", f"{file}:3")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"# nobody\n", b"\xff\xfe\xff"])
def test_a_file_without_addresses_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        addresses(file)
    assert caught.value.code == "TL-RECIPE-NOTIFY-FILE"
