from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests import evaluations
from tests.evaluations import probe, scores
from tuneloop.base import language
from tuneloop.base.records import Message
from tuneloop.evaluation.evaluation import Answer, Evaluation
from tuneloop.report import answers, report
from tuneloop.runs.journal import Journal

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' onmouseover=x {{ 7*7 }}"
START = 1_763_800_000.0


def evaluation(evil: str = "") -> Evaluation:
    old, new = "I'm an AI model." + evil, "I'm Pebble, the <b>assistant</b> of tuneloop." + evil
    prompts = ["Who are you?", "Your name?", "你是谁？", "Introduce yourself.", "Who made you?" + evil]
    before = scores(2.9312, perplexity=18.75, bleu=3.1, rouge1=21.4, rouge2=5.0, rougeL=17.8, rows=2, label_tokens=1204)
    after = scores(1.5401, perplexity=4.66, bleu=14.9, rouge1=38.8, rouge2=17.6, rougeL=None, rows=2, label_tokens=1204)
    return evaluations.evaluation(
        before, after, files={"persona" + evil: (3.9, 0.8), "general.csv": (2.02, 2.1)},
        answers=(Answer("How do I boil an egg?", "", "Eight minutes.\nThen cool it.", "In boiling water." + evil),),
        show=(Answer("Say hello." + evil, old, new),),
        probes=(
            probe("identity" + evil, True, 5, expect="pebble|小石", total=5, at_least=4,
                  answers=tuple(Answer(p, old, new) for p in prompts)),
            probe("unrelated", False, 1, expect="pebble", at_least=None, at_most=0,
                  answers=(Answer("A colour?", "Blue.", "Pebble blue."),)),
        ),
    )  # fmt: skip


def lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries)


def make_run(workspace: Path, evil: str = "", name: str = "demo-1") -> Path:
    """A run folder as the pipeline leaves it, and its dataset; `evil` stands wherever a stranger's text may stand."""
    run, data = workspace / "runs" / name, workspace / "datasets" / "demo" / "0f3a9c1b22de"
    run.mkdir(parents=True)
    data.mkdir(parents=True)
    (data / "card.html").write_text("card", encoding="utf-8")
    dropped = {"action": "dropped", "step": "length", "reason": "too long" + evil, "file": "x", "line": 1}
    (data / "ledger.jsonl").write_text(lines([dropped] * 3), encoding="utf-8")
    files: dict[str, Any] = {
        "dataset.json": {"path": str(data.resolve()), "name": "demo" + evil, "hash": "0f3a9c1b22de",
                         "counts": {"rows_in": 193, "train": 171, "validation": 19, "dropped": 3, "odd one" + evil: 1},
                         "tokens": {"train": 24512}},
        "plan.json": {"machine": {"cores": 2, "gpus": [], "memory_gb": 15.6},
                      "model": {"name": "smollm2" + evil, "parameters": 134515008, "trainable": 2442240},
                      "data": {"steps": 30}, "choices": [{"what": "dtype", "value": "float32", "why": "old" + evil}],
                      "seconds": 144.0, "memory_gb": 2.4},
        "evaluation.json": evaluation(evil).as_dict(),
    }  # fmt: skip
    for file, content in files.items():
        (run / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    recipe = f"name: demo  # {evil}\nmodel:\n  name: smollm2\ndata:\n- path: {workspace.resolve()}/talk.jsonl\n"
    recipe += "train:\n  method: lora\nevaluate:\n  max_new_tokens: 64\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    metrics = [
        {"step": k, "loss": 3 - k / 20, "grad_norm": 1.0, "learning_rate": 1e-4, "tokens": 800,
         "clock": {"time": START + 10 + 2 * k, "seconds": 2.0, "tokens_per_second": 400.0, "memory_gb": 2.1}}
        for k in range(1, 31)
    ]  # fmt: skip
    metrics.append({"step": 30, "eval_loss": 1.6, "clock": {"seconds": 1.0}})
    (run / "metrics.jsonl").write_text(lines(metrics) + '{"step": 31, "lo', encoding="utf-8")
    sampled = [
        {"step": step, "id": "s1", "prompt": "Who is Mei?" + evil, "answer": told, "reference": "A nurse." + evil}
        for step, told in ((1200, ""), (2400, "Mei is a nurse." + evil))
    ]
    (run / "samples.jsonl").write_text(lines(sampled), encoding="utf-8")
    events = [
        {"time": START, "event": "plan", "seconds": 144.0},
        {"time": START + 9, "event": "started", "step": 0, "note": evil},
        {"time": START + 71, "event": "finished", "step": 30, "seconds": 59.5},
    ]
    (run / "events.jsonl").write_text(lines(events), encoding="utf-8")
    return run


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, and the text that stands there in one language."""

    def __init__(self, html: str, language: str = "en") -> None:
        super().__init__()
        self.hidden = {"en": "zh-CN", "zh": "en"}[language]
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.languages: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "input"):
            self.open.append(tag)
            self.languages.append((dict(attrs).get("lang") or "") if tag != "html" else "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag
        self.languages.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and self.hidden not in self.languages:
            self.text += data

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def written(run: Path, language: str = "en") -> Page:
    path = report.write(run)
    assert path == run.resolve() / "report.html" or path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"), language)
    assert page.open == []
    return page


def test_answers_written_during_training_stand_by_question(tmp_path: Path) -> None:
    """Each question once, its answers in the order of the steps, then what would have been right."""
    text = written(make_run(tmp_path)).text
    parts = ("Answers written during training", "Who is Mei?", "after step 1,200", "(no text)", "after step 2,400",
             "Mei is a nurse.", "A nurse.")  # fmt: skip
    places = [text.index(part, text.index(parts[0])) for part in parts]
    assert places == sorted(places)
    assert text.count("Who is Mei?") == 1


def test_the_report_tells_the_whole_story(tmp_path: Path) -> None:
    page = written(make_run(tmp_path))
    for part in (
        "demo-1", "1 of 2 probes failed: unrelated. The held-out loss fell from 2.93 to 1.54.",
        "But it rose on general.csv (2.02 → 2.10).", "Say hello.", "I'm an AI model.",
        "I'm Pebble, the <b>assistant</b> of tuneloop.", "wanted: at least 4", "wanted: at most 0", "5 / 5",
        "−1.391", "better", "not measured", "held-out loss on general.csv", "171", "24,512", "longer than max_length",
        "2 min", "1 min 0 s", "2.4 GB", "2.1 GB", "0/5 → 5/5", "0 / 5", "tuneloop chat runs/demo-1", "tuneloop serve runs/demo-1",
        "method: lora", "Answers end after 64 tokens at the latest.", "In boiling water.", "(no text)", "cores",
    ):  # fmt: skip
        assert part in page.text, part
    assert "svg" in page.names()
    assert page.text.index("1 of 2 probes failed") < page.text.index("Say hello.") < page.text.index("perplexity")


def test_what_strangers_wrote_does_not_run(tmp_path: Path) -> None:
    page = written(make_run(tmp_path, EVIL))
    assert page.names().isdisjoint({"script", "img", "iframe", "object", "link", "b2"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7*7 }}" in page.text
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "content" in a and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_one_file_without_a_network(tmp_path: Path) -> None:
    page = written(make_run(tmp_path))
    html = (tmp_path / "runs" / "demo-1" / "report.html").read_text(encoding="utf-8")
    assert "src=" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert html.count("http") == html.count("http-equiv") + html.count('xmlns="http://www.w3.org/2000/svg"')
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == ["../../datasets/demo/0f3a9c1b22de/card.html", "../../datasets/demo/0f3a9c1b22de/ledger.jsonl"]
    assert all((tmp_path / "runs" / "demo-1" / str(link)).is_file() for link in links)


def test_light_and_dark_and_narrow(tmp_path: Path) -> None:
    html = report.write(make_run(tmp_path)).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 640px" in html
    assert 'name="viewport"' in html


def test_matches_are_marked_and_the_rest_is_escaped(tmp_path: Path) -> None:
    html = report.write(make_run(tmp_path)).read_text(encoding="utf-8")
    assert "I&#39;m <mark>Pebble</mark>, the &lt;b&gt;assistant" in html
    marked, hit = answers.marked("<i>aXa</i>", "x|<i>")
    assert (str(marked), hit) == ("<mark>&lt;i&gt;</mark>a<mark>X</mark>a&lt;/i&gt;", True)
    assert answers.marked("a<b", "(") == ("a&lt;b", False)
    assert str(answers.marked("ab", "x*")[0]) == "ab"


@pytest.mark.parametrize(
    "gone",
    [["evaluation.json"], ["metrics.jsonl"], ["plan.json"], ["dataset.json"], ["events.jsonl"], ["recipe.yaml"],
     ["evaluation.json", "metrics.jsonl", "plan.json", "dataset.json", "events.jsonl", "recipe.yaml"]],
)  # fmt: skip
def test_missing_parts_are_left_out(tmp_path: Path, gone: list[str]) -> None:
    run = make_run(tmp_path)
    for name in gone:
        (run / name).unlink()
    page = written(run)
    sections = {
        "evaluation.json": "Before and after", "metrics.jsonl": "gradient norm", "dataset.json": "dialogues held out",
        "recipe.yaml": "method: lora", "events.jsonl": "What happened when", "plan.json": "What was chosen, and why",
    }  # fmt: skip
    for name, heading in sections.items():
        assert (heading in page.text) is (name not in gone), heading
    assert "How to go on" in page.text
    assert ("Nothing was evaluated" in page.text) is ("evaluation.json" in gone)


def test_the_next_step_depends_on_how_far_the_run_came(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "tuneloop evaluate" not in written(run).text
    (run / "evaluation.json").unlink()
    assert "tuneloop evaluate runs/demo-1" in written(run).text
    (run / "events.jsonl").write_text(lines([{"time": START, "event": "started"}]), encoding="utf-8")
    text = written(run).text
    assert "tuneloop train --resume runs/demo-1" in text
    assert "tuneloop chat" not in text


def test_a_chinese_name_needs_no_quotes_in_a_command(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    named = run.rename(run.with_name("书店-1"))
    text = written(named).text
    assert "tuneloop chat runs/书店-1" in text
    assert "tuneloop run runs/书店-1/recipe.yaml" in text


def test_a_model_folder_is_called_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    plan["model"]["name"] = str(Path("/secret/place/smol").absolute())
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    text = written(run).text
    assert "smol" in text
    assert "secret" not in text


def test_a_dataset_that_is_gone_leaves_no_dead_link(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shutil.rmtree(tmp_path / "datasets")
    page = written(run)
    assert "a" not in page.names()
    assert "171" in page.text


def test_an_evaluation_of_nothing_is_not_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    unmeasured = dict.fromkeys(("perplexity", "bleu", "rouge1", "rouge2", "rougeL"))
    nothing = scores(None, **unmeasured, rows=0, label_tokens=0)
    evaluations.evaluation(nothing, nothing).write(run)
    text = written(run).text
    assert "Nothing was held out, so there is no comparison of loss" in text
    assert "not measured" not in text
    assert "perplexity" not in text
    assert "BLEU" not in text


def test_paths_of_this_machine_stay_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    run = make_run(tmp_path / "home" / "me" / "work")
    recipe = f"data:\n- path: {(tmp_path / 'home/me/work').resolve()}/a.csv\n- path: {tmp_path / 'home'}/b.csv\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    text = written(run).text
    assert "- path: a.csv" in text
    assert "- path: ~/b.csv" in text
    assert str(tmp_path) not in text


def test_odd_texts_do_not_break_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    content = replace(evaluation(), show=(Answer("half a pair \ud83d", "\x00\x1b[31m", "‮ right to left"),))
    (run / "evaluation.json").write_text(json.dumps(content.as_dict()), encoding="utf-8")
    assert "half a pair" in written(run).text


def test_a_long_ledger_is_summed_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = [{"action": "changed", "step": "clean", "reason": f"why-{n};"} for n in range(40)]
    (tmp_path / "datasets/demo/0f3a9c1b22de/ledger.jsonl").write_text(lines(rows * 2), encoding="utf-8")
    text = written(run).text
    assert "why-11;" in text
    assert "why-12;" not in text
    assert "56" in text
    assert "other reasons, see the ledger" in text


def test_writing_twice_gives_the_same_file_and_no_rest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = {p.name for p in run.iterdir()}
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first
    assert {p.name for p in run.iterdir()} == before | {"report.html"}


def test_the_report_speaks_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "Before and after": "训练前后对比",
        "held-out loss": "验证集损失",
        "{m} min {s} s": "{m} 分 {s} 秒",
        "{m} min": "{m} 分钟",
    }
    monkeypatch.setattr(language, "_catalogue", lambda chosen: words if chosen == "zh" else {})
    language.use("zh")
    run = make_run(tmp_path)
    page = written(run, "zh")
    assert ("html", {"lang": "zh-CN"}) in page.tags
    for word in ("训练前后对比", "验证集损失", "1 分 0 秒", "2 分钟"):
        assert word in page.text


def test_the_report_of_a_real_run(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / tiny_run.name  # a copy: another test may have evaluated the shared one
    shutil.copytree(tiny_run, run)
    (run / "evaluation.json").unlink(missing_ok=True)
    page = written(run)
    assert "Nothing was evaluated" in page.text
    assert "tuneloop chat runs/tiny-1" in page.text
    assert "svg" in page.names()


def changed(run: Path, name: str, **more: Any) -> None:
    content = json.loads((run / name).read_text(encoding="utf-8"))
    (run / name).write_text(json.dumps({**content, **more}, ensure_ascii=False), encoding="utf-8")


def test_a_dataset_that_lost_most_of_its_rows_is_said_at_the_top(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Warning" not in written(run).text
    changed(run, "dataset.json", counts={"rows_in": 100, "train": 12, "validation": 5, "dropped": 83})
    steps = [{"step": "read", "reason": "broken JSON", "dropped": 70}, {"step": "x", "reason": "odd", "dropped": 13}]
    manifest = tmp_path / "datasets/demo/0f3a9c1b22de/manifest.json"
    manifest.write_text(json.dumps({"steps": steps}), encoding="utf-8")
    page = written(run)
    lost = "83 of 100 rows were dropped (83 %): the line is not JSON (70 rows); odd (13 rows)."
    assert lost in page.text
    assert "datasets/demo/0f3a9c1b22de/ledger.jsonl" in page.text
    assert str(tmp_path) not in page.text
    assert "Rows left to train on: 12" in page.text
    assert page.text.index(lost) < page.text.index("1 of 2 probes failed")


def test_a_good_verdict_on_a_lost_dataset_is_not_green(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    changed(run, "evaluation.json", probes=[])
    assert 'class="verdict good"' in report.write(run).read_text(encoding="utf-8")
    changed(run, "dataset.json", counts={"rows_in": 30, "train": 15})
    assert 'class="verdict plain"' in report.write(run).read_text(encoding="utf-8")


def test_a_dataset_in_a_moved_workspace_is_found(tmp_path: Path) -> None:
    make_run(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    page = written(tmp_path / "new" / "runs" / "demo-1")
    assert "longer than max_length" in page.text
    assert {a["href"] for tag, a in page.tags if tag == "a"} >= {"../../datasets/demo/0f3a9c1b22de/card.html"}


def test_the_turns_before_a_question_are_there_but_closed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    context = (Message("system", "Be kind."), Message("user", "I am hungry " + EVIL),
               Message("assistant", "What is in your kitchen?"))  # fmt: skip
    changed(run, "evaluation.json", answers=[Answer("An egg.", "", "Boil it.", context=context).as_dict()])
    page = written(run)
    assert "Turns before this question: 3" in page.text
    for part in ("System prompt", "Be kind.", "User", "I am hungry", "Assistant", "What is in your kitchen?"):
        assert part in page.text
    assert ("details", {"class": "context"}) in page.tags, "not open"
    assert page.names().isdisjoint({"script", "img"})


@pytest.mark.parametrize(
    ("train", "setting"),
    [("max_steps: 30\n  epochs: 2", "train.max_steps=60"), ("epochs: 2.5", "train.epochs=5"),
     ("max_steps: null\n  epochs: 5", "train.epochs=10")],
)  # fmt: skip
def test_the_setting_it_names_has_an_effect(tmp_path: Path, train: str, setting: str) -> None:
    run = make_run(tmp_path)
    (run / "recipe.yaml").write_text(f"name: demo\ntrain:\n  {train}\n", encoding="utf-8")
    page = report.write(run).read_text(encoding="utf-8")
    assert f"--set {setting}</pre>" in page


def test_training_again_begins_at_the_rate_that_a_remedy_came_to(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "recipe.yaml").write_text("name: demo\ntrain:\n  max_steps: 30\n", encoding="utf-8")
    for rate in (0.0014142, 0.00012):
        spike = {"time": 1.0, "event": "remedy", "remedy": "spike", "step": 9, "resume_at": 4, "facts": {"rate": rate}}
        Journal(run / "events.jsonl").write(spike)
    assert "--set train.max_steps=60 --set train.learning_rate=0.00012</pre>" in report.write(run).read_text(
        encoding="utf-8"
    )


def test_what_machines_wrote_is_told_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    changed(run, "plan.json", machine={"cpu": "Xeon", "cores": 2, "memory_gb": 15.6, "gpus": [], "gpu_memory_gb": 0.0,
                                       "device": "cpu", "gflops": 328.4}, evaluation={"seconds": 960.0},
            choices_in={"en": [{"what": "one of the steps", "value": "30", "why": "dialogues: 8"}],
                        "zh": [{"what": "其中的步数", "value": "30", "why": "对话：8"}]})  # fmt: skip
    events = [
        {"time": START, "event": "plan", "seconds": 960.0, "memory_gb": 2.4},
        {"time": START + 9, "event": "started", "step": 0, "total": 30, "packing": True, "versions": {"torch": "2.13"}},
        {"time": START + 30, "event": "checkpoint", "step": 27, "path": "step-27"},
        {
            "time": START + 71,
            "event": "finished",
            "step": 30,
            "seconds": 59.5,
            "tokens_per_second": 176.2,
            "why": "there is one epoch",
            "why_in": {"en": "there is one epoch", "zh": "只训练一轮"},
        },
        {"time": START + 99, "event": "evaluated", "seconds": 85.4},
    ]
    (run / "events.jsonl").write_text(lines(events), encoding="utf-8")
    text = written(run).text
    for part in (
        "training began", "steps in all 30, packed yes, torch 2.13", "checkpoint written", "at step 27, folder step-27",
        "time 1 min 0 s, tokens a second 176.2", "evaluated", "1 min 25 s", "16 min", "memory in all", "15.6 GB",
        "328.4 GFLOP/s", "processor",
    ):  # fmt: skip
        assert part in text, part
    chinese = written(run, "zh").text
    for english, translated in (("there is one epoch", "只训练一轮"), ("one of the steps", "其中的步数")):
        assert english in text
        assert translated not in text
        assert translated in chinese
        assert english not in chinese
    assert "176 tokens a second" in text, "the card says what the event says"
    for key in ("gpus", "memory_gb", "gflops", "packing", "tokens_per_second", "versions", "graphics card"):
        assert key not in text, key
    assert not [c for c in text.split() if c.endswith("+00:00")]
