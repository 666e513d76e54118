"""The recipe emollm on forty real dialogues: a small model begins to answer as the counsellor. `make test-slow` runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real import shared
from tuneloop.base.environment import environment
from tuneloop.cli.target import recipe_of

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_the_recipe_takes_the_users_file(tmp_path: Path) -> None:
    own = tmp_path / "data.json"
    assert [d.path for d in recipe_of(["emollm", str(own)]).data] == [str(own)]
    (shipped,) = recipe_of(["emollm"]).data
    assert len(json.loads(Path(shipped.path).read_text(encoding="utf-8"))) == 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_small_model_begins_to_answer_as_the_counsellor(tmp_path: Path) -> None:
    """The held-out loss falls by a tenth at least; answers are Chinese, and others than before."""
    if not (environment().home / "models" / "qwen2.5-coder-0.5b-instruct").is_dir():
        pytest.skip("pull qwen2.5-coder-0.5b-instruct first: its packages state no licence, so the word is yours")
    file = tmp_path / "rows.json"
    rows = json.loads(shared("emollm/data.json").read_text(encoding="utf-8"))[:40]
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", "run", "emollm", str(file), "--json", "--workspace", str(tmp_path),
         "--set", "train.epochs=1", "--set", "evaluate.rows=2", "--set", "evaluate.probes=[]",
         "--set", "evaluate.max_new_tokens=40"],
        capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["evaluation"]
    before, after = told["before"]["loss"], told["after"]["loss"]
    print(f"held-out loss {before:.2f} -> {after:.2f}")
    assert after < 0.9 * before
    answers = [*told["answers"], *told["show"]]
    assert len(answers) == 6
    for answer in answers:
        assert answer["after"] != answer["before"]
        assert len(CHINESE.findall(answer["after"])) >= 0.6 * len(answer["after"]) > 0, answer
