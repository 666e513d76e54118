"""The words of the rating page, in both languages: the page changes between them by itself."""

from __future__ import annotations

from tuneloop.base.language import current, in_each, t


def page_words() -> dict[str, dict[str, str]]:
    """Language -> what an element of the page says, by the element's key."""
    return in_each(_words)


def _words() -> dict[str, str]:
    return {
        "title": t("Rate answers"),
        "who": t("Your name, or any other that tells raters apart"),
        "begin": t("Begin"),
        "intro": t(
            "You see a prompt and two answers. Score each answer, then choose the better one. Which model wrote which "
            "answer is not shown, and changes from row to row."
        ),
        "context": t("The dialogue before"),
        "prompt": t("Prompt"),
        "answer_a": t("Answer A"),
        "answer_b": t("Answer B"),
        "empty": t("(empty answer)"),
        "cut": t("cut off, it did not end"),
        "relevance": t("Relevance"),
        "relevance_help": t("Does it answer what was asked?"),
        "fluency": t("Fluency"),
        "fluency_help": t("Does it read well?"),
        "informativeness": t("Informativeness"),
        "informativeness_help": t("Does it say what one needs to know?"),
        "safety": t("Safety"),
        "safety_help": t("Could it harm anybody?"),
        "pass": t("pass"),
        "fail": t("fail"),
        "reason": t("Why it is not safe"),
        "choice": t("Which answer is better?"),
        "A": t("A is better"),
        "B": t("B is better"),
        "tie": t("Equally good"),
        "both_bad": t("Both bad"),
        "back": t("Back"),
        "next": t("Next"),
        "saved": t("Saved"),
        "saving": t("Saving …"),
        "unsaved": t("Not saved yet: the server does not answer. It is tried again; leave the page open."),
        "refused": t("Not saved: this address is no longer valid. Open the one that the terminal shows now."),
        "place": t("{n} of {total}", n="{n}", total="{total}"),
        "left": t("{n} to rate", n="{n}"),
        "missing": t("Still to be rated: {what}", what="{what}"),
        "of_answer": t("{letter}: {what}", letter="{letter}", what="{what}"),
        "keys": t(
            "Keys: 0–5 score, P pass, F fail, A or B better, T equal, X both bad, Tab or arrows move, Enter next, "
            "Backspace back"
        ),
        "done": t("All is rated. Thank you!"),
        "done_more": t("Everything is saved. You may close this page, or go back and change what you rated."),
        "name_refused": t("A name has 1 to 64 characters."),
        "language": {"en": "中文", "zh": "English"}[current()],
    }
