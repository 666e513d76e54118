"""The life of a run, for tests: prepared, trained in a child that is killed, taken up again, and read by plain tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests import encoders
from tests.conftest import TALK, byte_tokenizer, tiny_config, tiny_folder
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.data.tokens.templates import CHATML
from tuneloop.data.version.dataset import Dataset
from tuneloop.model import checkpoint
from tuneloop.planning.planner import Plan
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

STEPS, SAVED, KILLED = 6, 2, 3
OF_METHOD: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1}}, "qlora": {"lora": {"rank": 4}}, "freeze": {"freeze": {"layers": 1}},
    "ptuning_v2": {"virtual": {"tokens": 4}}, "prompt_tuning": {"virtual": {"tokens": 4}},
}  # fmt: skip
OF_TASK: dict[str, dict[str, Any]] = {
    "classify_prompt": {"classify": {"template": "{text} It was {mask}", "words": {"bad": ["bad"], "good": ["good"]}}},
    "kto": {"task": "prefer", "prefer": {"loss": "kto"}},
    "orpo": {"task": "prefer", "prefer": {"loss": "orpo"}},
}
"""What a method or a task needs to be told beside its name; kto and orpo stand for two more losses of task prefer."""
KIND = {"chat": "chat", "text": "text", "classify": "label", "classify_prompt": "label", "prefer": "preference",
        "reward": "preference", "kto": "judged", "orpo": "preference"}  # fmt: skip
"""Task -> the rows that teach it."""


def model_folder(folder: Path, family: str) -> Path:
    """A tiny random model of a family with its tokenizer."""
    if family in encoders.FAMILIES:
        return encoders.folder(folder, family)
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    more = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}  # fmt: skip
    if family != "deepseek_v3":  # 64 numbers are the smallest block that 4 bits are made of
        more |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    tiny_config(family, **more)
    tiny_folder(folder, family, **more)
    tokenizer.save_pretrained(folder)
    return folder


def rows(folder: Path, kind: str) -> Path:
    """Forty rows of a kind; texts with a label are of few words, which a tiny encoder knows as well."""
    made: list[dict[str, Any]] = []
    for n in range(5):
        for k, (question, answer) in enumerate(TALK):
            asked = {"role": "user", "content": f"{question} ({n})"}
            other = TALK[(k + 1) % len(TALK)][1]
            said = [*encoders.WORDS[k : k + 3 + n], ["dull", "fine"][k % 2]]
            made.append({
                "chat": {"messages": [asked, {"role": "assistant", "content": answer}]},
                "text": {"text": f"{question} ({n})\n{answer}"},
                "label": {"text": " ".join(said), "label": ["bad", "good"][k % 2]},
                "preference": {"prompt": asked["content"], "chosen": answer, "rejected": other},
                "judged": {"messages": [asked, {"role": "assistant", "content": [other, answer][k % 2]}],
                           "kto_tag": bool(k % 2)},
            }[kind])  # fmt: skip
    return jsonl(folder / f"{kind}.jsonl", made)


def fork(work: Callable[[], Any], errors: Path | None = None) -> int:
    """Run `work` in a forked process and return its id. torch must have used no threads before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with open(errors or os.devnull, "a", encoding="utf-8") as file:
            sys.stderr = file
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            file.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying(step: int) -> None:
    """This process kills itself after step `step`, when its line is written and its checkpoint, if one is due."""
    from tuneloop.training.callbacks import Saver

    inner = Saver.on_step

    def on_step(self: Saver, state: checkpoint.State, result: Any) -> None:
        inner(self, state, result)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Saver.on_step = on_step  # type: ignore[method-assign]


@dataclass
class Ground:
    """A model and what is made of it once: a dataset a kind of row, with a plan."""

    folder: Path
    model: Path
    made: dict[str, tuple[Dataset, Plan]] = field(default_factory=dict)

    def recipe(self, method: str, task: str, **train: Any) -> Recipe:
        file = self.folder / f"{KIND[task]}.jsonl"
        if not file.is_file():
            rows(self.folder, KIND[task])
        settings = {
            "task": task, "method": method, "max_steps": STEPS, "batch_size": 12, "learning_rate": 2e-3,
            "save_strategy": "steps", "save_steps": SAVED, "save_total_limit": None, **OF_METHOD.get(method, {}),
            **OF_TASK.get(task, {}), **train,
        }  # fmt: skip
        recipe, _ = make_recipe({
            "name": f"{method}-{task}", "model": str(self.model), "data": {"path": str(file), "task": KIND[task]},
            "prepare": {"validation": 4, "dedupe": "off"}, "train": settings,
        })  # fmt: skip
        return recipe

    def prepared(self, recipe: Recipe, task: str) -> tuple[Dataset, Plan]:
        """The dataset of a recipe and a plan of it: what it foresees of one method does for a test of all."""
        if KIND[task] not in self.made:
            dataset = pipeline.prepare(recipe, workspace=self.folder)
            self.made[KIND[task]] = dataset, pipeline.plan(recipe, dataset)[0]
        return self.made[KIND[task]]

    def lived(
        self, recipe: Recipe, task: str, kills: tuple[int, ...] = (KILLED,),
        between: Callable[[Run], Any] = lambda run: None,
    ) -> tuple[Run, Run]:  # fmt: skip
        """Two finished runs of a recipe, each in children of its own: one never stopped, one killed at these steps.

        `between` is done to the killed run before it is taken up.
        """
        dataset, plan = self.prepared(recipe, task)
        log = self.folder / f"{recipe.name}.log"
        runs = [Run(self.folder / side / "runs" / f"{recipe.name}-1") for side in ("whole", "killed")]

        def train(side: str, kill: int | None) -> None:
            if kill:
                dying(kill)
            pipeline.train(recipe, dataset, workspace=self.folder / side, foreseen=plan, number=1)

        def resume(kill: int | None) -> None:
            if kill:
                dying(kill)
            pipeline.resume(runs[1])

        assert wait(fork(lambda: train("whole", None), log)) == 0, log.read_text(encoding="utf-8")
        for n, kill in enumerate((*kills, None)):
            code = wait(fork(lambda n=n, kill=kill: resume(kill) if n else train("killed", kill), log))  # type: ignore[misc]
            assert code == (-signal.SIGKILL if kill else 0), log.read_text(encoding="utf-8")
            if kill:
                between(runs[1])
        return runs[0], runs[1]


def resumed(run: Run) -> list[int]:
    """The steps that a run was taken up at."""
    return [line["step"] for line in events(run, "resumed")]


def events(run: Run, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == name]


def metrics(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "clock"} for line in lines]


def assert_same(one: Run, two: Run) -> None:
    """The same lines, the same last checkpoint and the same result: bit for bit, times aside."""
    assert metrics(one) == metrics(two)
    a, b = checkpoint.newest(one.checkpoints), checkpoint.newest(two.checkpoints)
    assert a is not None
    assert b is not None
    assert a.name == b.name
    for name in ["trained.safetensors", "optimizer.safetensors", "random.safetensors"]:
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(left[k].equal(right[k]) for k in left), name
    states = [json.loads((p / "state.json").read_text(encoding="utf-8")) for p in (a, b)]
    assert states[0] == states[1]
    mine, theirs = one.trained_folder(), two.trained_folder()
    assert mine is not None
    assert theirs is not None
    files = sorted(path.name for path in mine.glob("*.safetensors"))
    assert files
    for name in files:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name


PLAIN = """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import save_file
import transformers
from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
KINDS = {"causal": "AutoModelForCausalLM", "classifier": "AutoModelForSequenceClassification", "masked": "AutoModelForMaskedLM"}
for line in sys.stdin:
    asked = json.loads(line)
    folder, more = asked["folder"], {}
    try:
        config = json.load(open(folder + "/adapter_config.json"))
    except FileNotFoundError:
        config = None
    if asked["labels"] and config:
        more["num_labels"] = asked["labels"]
    if asked["bits"]:
        more["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["classifier", "score", "bert.pooler"] if asked["labels"] else None)
    kind = getattr(transformers, KINDS[asked["kind"]])
    model = kind.from_pretrained(config["base_model_name_or_path"] if config else folder, dtype=torch.float32, **more)
    for module in model.modules():  # on some CPUs bitsandbytes would round to bfloat16 when it answers
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    if config:
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out = {}
    with torch.no_grad():
        for k, ids in enumerate(asked["ids"]):
            row = torch.tensor([ids])
            out[f"{k}"] = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].float().contiguous()
        if asked["kind"] == "causal" and asked["prompt"]:
            row = torch.tensor([asked["prompt"]])
            said = model.generate(input_ids=row, attention_mask=torch.ones_like(row), do_sample=False,
                                  max_new_tokens=8, pad_token_id=tokenizer.pad_token_id,
                                  eos_token_id=tokenizer.eos_token_id)
            out["said"] = said[0, row.shape[1]:].contiguous()
    save_file(out, asked["out"])
    assert "tuneloop" not in sys.modules
    print("done", flush=True)
"""


class Plain:
    """A process that knows transformers and PEFT and no tuneloop, and loads one result folder after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.log = (folder / "plain.log").open("w")
        self.process = subprocess.Popen([sys.executable, "-c", PLAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"})  # fmt: skip

    def ask(
        self, folder: Path, ids: list[list[int]], kind: str, *, labels: int = 0, bits: bool = False,
        prompt: list[int] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Logits of each text by its number, and the token ids `said` after the prompt."""
        self.count += 1
        out = self.folder / f"plain-{self.count}.safetensors"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        question = {"folder": str(folder), "ids": ids, "kind": kind, "labels": labels, "bits": bits,
                    "prompt": prompt or [], "out": str(out)}  # fmt: skip
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", (self.folder / "plain.log").read_text(encoding="utf-8")
        return load_file(out)

    def close(self) -> None:
        self.process.communicate()
        self.log.close()
