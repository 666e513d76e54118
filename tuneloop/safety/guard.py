"""The guard: what it finds in a text, and the text as it may be passed on, whole or while it is being written.

Words are found by the lexicon, personal data by `pii`; what happens to them says the policy. It judges no meaning; a
model that does is asked elsewhere. The same guard serves the server and `prepare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop.safety import pii_windows
from tuneloop.safety.lexicon import Lexicon, span_of, without_overlap
from tuneloop.safety.policy import GuardAction, Policy, TextSide, read_policy
from tuneloop.safety.skeleton import begun_escape, skeleton
from tuneloop.safety.span import Span

MASK = "***"
CONTEXT = 64
"""Characters before what is not yet passed on that may decide about it."""


@dataclass(frozen=True, slots=True)
class GuardFinding:
    """A word or personal data at [start, end) of a text. It holds no text: what it is about stays out of all logs."""

    category: str
    action: GuardAction
    start: int
    end: int
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Filtered:
    """A text as it may be passed on; where `blocked` it ends before what was blocked."""

    text: str
    findings: tuple[GuardFinding, ...] = ()
    blocked: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything was masked or blocked."""
        return any(finding.action in {"mask", "block"} for finding in self.findings)


class TextGuard:
    """A policy and its words. `version` changes with anything that changes an answer."""

    def __init__(self, policy: Policy, lexicon: Lexicon, version: str) -> None:
        self.policy, self.lexicon, self.version = policy, lexicon, version

    @classmethod
    def load(cls, path: str | Path = "default", *, lists: Sequence[str | Path] = ()) -> TextGuard:
        """The guard of a policy file, with further word lists. Raises what `read_policy` raises."""
        return cls(*read_policy(path, lists))

    def personal(self, side: TextSide) -> GuardAction:
        """What happens to personal data on a side."""
        return self.policy.personal_data.on(side)

    def words(self, text: str) -> list[Span]:
        """The listed words in `text`, whatever their action. For `prepare`, which has actions of its own."""
        return self.lexicon.find(text)

    def find(self, text: str, side: TextSide = "output") -> list[GuardFinding]:
        """All findings in a text, in order.

        >>> [(f.category, f.action) for f in TextGuard.load().find("代*开*发*票，li@example.com")]
        [('ads', 'block'), ('email', 'mask')]
        """
        findings = [self.word_finding(span, side) for span in self.lexicon.find(text)]
        if self.personal(side) != "off":
            findings += [self.personal_finding(s, side) for s in pii_windows.find(text, self.policy.kinds)[0]]
        return ordered(findings)

    def filter(self, text: str, side: TextSide = "output") -> Filtered:
        """A whole text as it may be passed on.

        >>> TextGuard.load().filter("Oh f.u.c.k, write to li@example.com").text
        'Oh ***, write to [EMAIL]'
        """
        return applied(text, self.find(text, side))

    def stream(self, side: TextSide = "output") -> StreamFilter:
        """A filter for a text that comes in pieces."""
        return StreamFilter(self, side)

    def word_finding(self, span: Span, side: TextSide) -> GuardFinding:
        """A word that was found, with what happens to it."""
        return GuardFinding(span.kind, self.policy.action(span.kind, side), span.start, span.end)

    def personal_finding(self, span: Span, side: TextSide) -> GuardFinding:
        """Personal data that was found, with what happens to it."""
        return GuardFinding(span.kind, self.personal(side), span.start, span.end, personal=True)


def ordered(findings: Sequence[GuardFinding]) -> list[GuardFinding]:
    """By place; what is switched off is left out."""
    return sorted((f for f in findings if f.action != "off"), key=lambda f: (f.start, -f.end, f.category))


def applied(text: str, findings: Sequence[GuardFinding]) -> Filtered:
    """The text with its findings masked, up to the first that is blocked. `findings` are in order."""
    parts: list[str] = []
    counted: list[GuardFinding] = []
    at = 0
    for finding in findings:
        counted.append(finding)
        if finding.action == "block":
            return Filtered("".join([*parts, text[at : max(at, finding.start)]]), tuple(counted), True)
        if finding.action == "mask" and finding.end > at:
            if finding.start >= at:
                parts += [text[at : finding.start], f"[{finding.category.upper()}]" if finding.personal else MASK]
            at = finding.end
    return Filtered("".join([*parts, text[at:]]), tuple(counted))


class StreamFilter:
    """Passes on a text piece by piece; all that comes out together is what `TextGuard.filter` makes of the whole text.

    It holds back what may be the beginning of a word or of a number: mostly the last word, and nothing for ever.
    """

    def __init__(self, guard: TextGuard, side: TextSide = "output") -> None:
        self._guard, self._side = guard, side
        self._text, self._base = "", 0
        """What is held: the text from character `_base` on."""
        self._passed = 0
        self._scanned = 0
        """Up to here personal data has been looked for."""
        self._personal: list[GuardFinding] = []
        self.findings: list[GuardFinding] = []
        """What has been found in what was passed on, in order; places are those of the whole text."""
        self.blocked = False

    def push(self, text: str) -> str:
        """What may be passed on, now that `text` has come."""
        return "" if self.blocked or not text else self._go_on(text, ended=False)

    def finish(self) -> str:
        """What is left at the text's end."""
        return "" if self.blocked or not self._text else self._go_on("", ended=True)

    def _go_on(self, text: str, *, ended: bool) -> str:
        self._text += text
        self._look_for_personal_data(ended)
        hidden, places, safe = self._look_for_words(ended)
        if self._guard.personal(self._side) == "off":
            self._scanned = safe
        safe = min(safe, self._scanned)
        findings = ordered([*hidden, *self._personal])
        places += [(f.start, f.end) for f in self._personal]
        # Nothing is torn: what crosses the border is held back whole, and so is what that touches.
        while crossing := [start for start, end in places if start < safe < end]:
            safe = min(crossing)
        settled = [f for f in findings if self._passed <= f.start and f.end <= safe]
        local = [replace(f, start=f.start - self._passed, end=f.end - self._passed) for f in settled]
        out = applied(self._text[self._passed - self._base : max(0, safe - self._base)], local)
        self.findings += settled[: len(out.findings)]
        self.blocked = out.blocked
        self._passed = max(self._passed, safe)
        self._personal = [f for f in self._personal if f.end > self._passed]
        self._forget()
        return out.text

    def _look_for_personal_data(self, ended: bool) -> None:
        if self._guard.personal(self._side) == "off":
            return
        kinds, at = self._guard.policy.kinds, self._scanned - self._base
        spans, certain = pii_windows.find(self._text, kinds, at, ended=ended)
        moved = [replace(s, start=s.start + self._base, end=s.end + self._base) for s in spans]
        self._personal += [self._guard.personal_finding(span, self._side) for span in moved]
        self._scanned = self._base + certain

    def _look_for_words(self, ended: bool) -> tuple[list[GuardFinding], list[tuple[int, int]], int]:
        """The words that are not yet passed on; the places of all that was looked at for them; and up to where that is
        certain."""
        text = self._text if ended else self._text[: begun_escape(self._text)]
        folded = skeleton(text)
        lexicon, base = self._guard.lexicon, self._base
        safe = len(folded.text) if ended else lexicon.begun(folded.text)
        border = folded.original(safe, safe + 1)[0] if safe < len(folded.text) else len(text)
        placed = [(hit, span_of(folded, text, hit)) for hit in lexicon.hits(folded.text)]
        # What was cut off at the left is no longer whole, and was decided when it was.
        placed = [(hit, span) for hit, span in placed if span.start + base >= self._passed]
        places = [(span.start + base, span.end + base) for _, span in placed]
        spans = [span_of(folded, text, hit) for hit in without_overlap([hit for hit, _ in placed])]
        moved = [replace(span, start=span.start + base, end=span.end + base) for span in spans]
        return [self._guard.word_finding(span, self._side) for span in moved], places, base + border

    def _forget(self) -> None:
        """Let go of what can no longer decide about anything."""
        start = min(self._passed, self._scanned) - CONTEXT
        if start - self._base < CONTEXT:
            return
        while start > self._base and not skeleton(self._text[start - self._base : self._passed - self._base]).text:
            start -= CONTEXT  # what shows nothing does not count
        if start > self._base:
            self._text, self._base = self._text[start - self._base :], start
