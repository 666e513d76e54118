"""The words of the chat page, in both languages: the page changes between them by itself."""

from __future__ import annotations

from tuneloop.base.language import current, in_each, t


def page_words() -> dict[str, dict[str, str]]:
    """Language -> what an element of the page says, by the element's key."""
    return in_each(_words)


def _words() -> dict[str, str]:
    return {
        "title": t("Chat"),
        "left": t("Left"),
        "right": t("Right"),
        "nobody": t("(nobody)"),
        "again": t("New chat"),
        "key": t("API key"),
        "key_help": t("This server wants a key. It stays in this tab and is sent to this server alone."),
        "wrong_key": t("The server does not know this key, or it has ended. Enter another one."),
        "open": t("Open"),
        "intro": t(
            "Both models get the same message, and each goes on with its own answers. A thumb under an answer is "
            "written down on the server as feedback."
        ),
        "question": t("Your message (Enter sends, Shift+Enter starts a line)"),
        "send": t("Send"),
        "stop": t("Stop"),
        "thought": t("Thought"),
        "cut": t("Cut off: the longest answer was reached."),
        "filtered": t("Withheld by the server's safety policy."),
        "stopped": t("Stopped."),
        "down": t("The server does not answer."),
        "up": t("Good answer"),
        "down_thumb": t("Bad answer"),
        "noted": t("Thank you, noted."),
        "language": {"en": "中文", "zh": "English"}[current()],
    }
