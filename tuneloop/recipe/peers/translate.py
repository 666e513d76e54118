"""Puts keys that people bring from other tools (the tables are in `tables.py`) into the recipe's own, and says so.

It does not know which keys the recipe has: what it does not recognise stays in place, and `recipe.py` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.recipe.choices import METHOD_CHOICES, TRAIN_SECTIONS, USUAL_METHOD, MethodChoice
from tuneloop.recipe.peers import tables
from tuneloop.recipe.peers import values as convert
from tuneloop.recipe.peers.account import Work
from tuneloop.recipe.peers.data_files import files
from tuneloop.recipe.peers.tables import Why
from tuneloop.recipe.peers.values import NOTHING, Convert, Dropped, Wrong, integer, number, together

ALIASES: dict[str, tuple[str, Convert]] = {
    alias: (key, how) for key, how, names in tables.TABLE for alias in names.split()
}
# Keys whose name means something else elsewhere: tokens of a tokenizer, a template of a list of templates.
OWN = {key for key, _, _ in tables.TABLE} | {"prepare.tokens", "train.classify.template"}
SECTIONS = ("", "model", "prepare", "train", *(f"train.{name}" for name in TRAIN_SECTIONS), "evaluate")
# Chinese words for a key, to guess from; they are not read as keys
CHINESE = {
    "name": "名称 名字 任务名 运行名", "seed": "种子 随机种子", "model": "模型",
    "model.name": "模型名 模型名称 模型路径 基座模型 基座", "model.revision": "版本",
    "model.dtype": "精度 类型 数据类型", "model.template": "模板 对话模板 聊天模板",
    "data": "数据 数据集 数据文件 文件", "data[].path": "路径 文件路径", "data[].rows": "行 行数 范围",
    "data[].sample": "抽样 采样 样本数", "data[].split": "划分", "data[].task": "任务 任务类型",
    "data[].encoding": "编码", "data[].columns": "列 列名 字段",
    "data[].speakers": "说话人 角色", "data[].repeat": "重复 重复次数 权重",
    "prepare": "准备 预处理 数据处理", "prepare.system": "系统 系统提示 系统提示词", "prepare.clean": "清洗",
    "prepare.clean.pii": "隐私 脱敏 个人信息", "prepare.clean.lexicon": "敏感词 敏感词表 敏感词过滤",
    "prepare.augment": "数据增强 增强 数据扩充", "prepare.turns": "轮次 对话轮次 对话轮数",
    "prepare.max_length": "最大长度 长度 最长 截断长度", "prepare.too_long": "超长 过长 截断",
    "prepare.dedupe": "去重", "prepare.validation": "验证 验证集 留出 留出集 验证比例", "prepare.test": "测试 测试集",
    "train": "训练", "train.method": "方法 训练方法 微调方法", "train.lora.rank": "秩",
    "train.lora.targets": "目标模块", "train.epochs": "轮数 训练轮数 轮 周期",
    "train.max_steps": "步数 最大步数 训练步数", "train.batch_size": "批大小 批次大小 批量大小 批量 批次",
    "train.packing": "打包", "train.learning_rate": "学习率", "train.schedule": "调度 学习率调度 调度器",
    "train.warmup_ratio": "预热 预热比例", "train.warmup_steps": "预热步数", "train.weight_decay": "权重衰减",
    "train.max_grad_norm": "梯度裁剪", "train.checkpointing": "梯度检查点", "train.logging_steps": "日志步数",
    "train.early_stopping": "早停 提前停止 过拟合", "train.save_steps": "保存步数",
    "train.eval_steps": "评估步数", "evaluate": "评估 评测 测评",
    "evaluate.show": "展示 问题", "evaluate.probes": "检查题 探针", "evaluate.max_new_tokens": "最大生成长度",
    "watch": "监控 监测 警报", "watch.rules": "规则", "watch.remedies": "补救 补救措施",
    "watch.trackers": "跟踪 实验跟踪", "watch.notify": "通知", "watch.notify.file": "通知文件",
    "serve": "部署 服务", "serve.queue": "队列 队列长度", "serve.key_file": "密钥 密钥文件",
}  # fmt: skip


def translate(raw: dict[str, Any], folder: Path | None = None) -> tuple[dict[str, Any], list[str], list[RecipeError]]:
    """The recipe's own nested keys, notes about what was translated or dropped, all problems. `raw` is not changed.

    `folder` is where the recipe lies, None for one that lies nowhere.

    >>> translate({"num_train_epochs": 2})
    ({'train': {'epochs': 2}}, ['num_train_epochs is called train.epochs here'], [])
    """
    work = Work(raw, folder)
    for section in SECTIONS:
        place = work.section(section)
        for key in list(place):
            if isinstance(key, str):
                _one(work, section, place, key)
    for several in (_model, _method, _task, _quantised, _adapters, _warmup, _betas, _batch, _strategies, files, _name):
        several(work)
    return work.out, work.all_notes(), work.problems


def _fate(key: str) -> tuple[Callable[[Any], bool], Why, Why] | None:
    """For a key of another tool without a place here: which values ask for nothing; what the others ask for, and what
    to do instead."""
    for names, harmless, feature, instead in tables.UNSUPPORTED:
        if any(fnmatchcase(key, name) for name in names.split()):
            return harmless, feature, instead
    return None


def _ignored(key: str) -> Why | None:
    return next((why for names, why in tables.IGNORED if any(fnmatchcase(key, name) for name in names.split())), None)


def _one(work: Work, section: str, place: dict[str, Any], key: str) -> None:
    """Translate, drop or refuse one key, or leave it where it is."""
    where = f"{section}.{key}" if section else key
    target, convert = ALIASES.get(key, ("", together))
    if where in OWN:
        return
    if target and (section in {"", "train"} or target.startswith(f"{section}.")):
        setting = place.pop(key)
        if setting is None and key != "adapter":  # Axolotl: an empty adapter means all weights
            work.silent.append(where)
        elif convert is together:
            work.waiting.append((key, where, setting))
        else:
            converted = work.read(where, convert, setting)
            if converted is not NOTHING and work.put(target, converted, where):
                _tell(work, where, setting, target, converted, tables.REMARKS.get(key) or tables.REMARKS.get(target))
        return
    fate, why = _fate(key), _ignored(key)
    if fate is None and why is None:
        return
    setting = place.pop(key)
    try:
        if setting is None or (fate and fate[0](setting)):
            work.silent.append(where)
        elif fate:
            work.unsupported(where, setting, fate[1](), fate[2]())
        elif why:
            work.drop(where, why())
    except Dropped as reason:
        work.drop(where, str(reason))


def _tell(work: Work, where: str, before: Any, key: str, after: Any, remark: Why | None) -> None:
    if remark is None and (type(before) is not type(after) or before != after):
        work.becomes(where, before, key, after)
    else:
        work.called(where, key, remark)


def _model(work: Work) -> None:
    """`model_name` is Unsloth's word for the model, and ms-swift's for what the assistant calls itself."""
    written = work.pick("model.name", lambda v: v, "model_name")
    if written and "name" in work.section("model"):
        work.drop(written[0], t("the data says what the assistant is called"))
    elif written and work.put("model.name", written[1], written[0]):
        work.called(written[0], "model.name")


def _method(work: Work) -> None:
    """An Axolotl file without `adapter` trains all weights; our default is LoRA."""
    named = any(ALIASES.get(key, ("",))[0] == "train.method" for key in work.raw if isinstance(key, str))
    if {"base_model", "datasets"} <= work.raw.keys() and not named and "method" not in work.section("train"):
        work.put("train.method", "full", "base_model")
        work.notes.append(t("no adapter: as in Axolotl all weights are trained, train.method is full"))


def _task(work: Work) -> None:
    """The stage, or the kind of preference training, and with it the loss; a loss of its own may stand beside it."""
    written = work.pick("train.task", convert.task, "stage", "task", "task_type", "rl", "rlhf_type")
    loss = work.pick("train.prefer.loss", convert.preference, "pref_loss", "loss_type")
    if written:
        where, (task, wanted) = written
        if work.put("train.task", task, where):
            work.becomes(where, work.raw_at(where), "train.task", task)
        if wanted and loss:  # stage: kto knows no other loss, whatever pref_loss says
            work.drop(loss[0], t("{where} says the loss", where=where))
            loss = None
        if wanted and work.put("train.prefer.loss", wanted, where):
            work.becomes(where, work.raw_at(where), "train.prefer.loss", wanted)
    if loss and work.put("train.prefer.loss", loss[1], loss[0]):
        work.becomes(loss[0], work.raw_at(loss[0]), "train.prefer.loss", loss[1])


def _method_choice(train: dict[str, Any]) -> MethodChoice:
    return METHOD_CHOICES.get(str(train.get("method", USUAL_METHOD)), MethodChoice())


def _quantised(work: Work) -> None:
    """LoRA over weights in 4 or 8 bits is a method of its own here."""
    four = work.pick("train.qlora.bits", convert.flag("nf4"), "load_in_4bit")
    eight = work.pick("train.qlora.bits", convert.flag("int8"), "load_in_8bit")
    bits = work.pick("train.qlora.bits", convert.bits, "quantization_bit", "quant_bits")
    double = work.pick(
        "train.qlora.double", convert.either, "double_quantization", "bnb_4bit_use_double_quant", "use_bnb_nested_quant"
    )
    forms = [written for written in (four, eight, bits) if written]
    train = work.section("train")
    for where, form in forms:
        quantized = _method_choice(train).quantized
        if not quantized:
            feature = t("training {method} on quantized weights", method=train["method"])
            work.unsupported(where, work.raw_at(where), feature, t("take it out, or set train.method: qlora"))
        elif work.put("train.qlora.bits", form, where):
            train = work.section("train")
            train["method"] = quantized
            work.notes.append(t("{where}: train.method is qlora, train.qlora.bits is {bits}", where=where, bits=form))
    if double and not _method_choice(train).quantize:
        work.drop(double[0], t("only for quantized weights"))
    elif double and work.put("train.qlora.double", double[1], double[0]):
        work.called(double[0], "train.qlora.double")


def _adapters(work: Work) -> None:
    """Adapters to go on from. Of several all but the last are added into the weights, as LLaMA-Factory does."""
    written = work.pick("train.adapter", convert.adapters, "adapter_name_or_path", "lora_model_dir", "adapters")
    fresh = work.pick("train.adapter", convert.flag(True), "create_new_adapter")
    if written is None:
        if fresh:
            work.silent.append(fresh[0])
        return
    where, names = written
    merged, last = (names, None) if fresh else (names[:-1], names[-1])
    if merged and work.put("train.merge", merged, where):
        work.becomes(where, work.raw_at(where), "train.merge", merged)
    if last and work.put("train.adapter", last, where):
        work.becomes(where, work.raw_at(where), "train.adapter", last)


def _warmup(work: Work) -> None:
    """`warmup_steps` below 1 is a share (transformers 5); 0 beside a share says nothing (transformers 4)."""
    written = work.pick("train.warmup_steps", number, "warmup_steps")
    if not written:
        return
    where, steps = written
    if steps == 0 and "warmup_ratio" in work.section("train"):
        work.silent.append(where)
        return
    key = "train.warmup_ratio" if 0 < steps < 1 else "train.warmup_steps"
    if work.put(key, steps, where):
        work.called(where, key)


def _betas(work: Work) -> None:
    first = work.pick("train.betas", number, "adam_beta1")
    second = work.pick("train.betas", number, "adam_beta2")
    for written in (first, second):
        betas = [first[1] if first else 0.9, second[1] if second else 0.999]
        if written and work.put("train.betas", betas, written[0]):
            work.called(written[0], "train.betas")


def _batch(work: Work) -> None:
    """Per-device size x accumulation steps is the global batch on one device; here the global size is the one said."""
    names = ("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size")
    micro = work.pick("train.micro_batch_size", integer, *names)
    steps = work.pick("train.batch_size", integer, "gradient_accumulation_steps")
    if micro is None and steps is None:
        return
    train = work.section("train")
    own = train.get("micro_batch_size")
    each = micro[1] if micro else own if isinstance(own, int) and own > 0 else 1
    where = micro[0] if micro else steps[0] if steps else ""
    if steps is not None or "batch_size" not in train:
        total = each * (steps[1] if steps else 1)
        keys = ", ".join(written[0] for written in (micro, steps) if written)
        if not work.put("train.batch_size", total, keys):
            return
        work.notes.append(
            t(
                "{keys}: train.batch_size is {n}, the dialogues of one optimizer step over all devices",
                keys=keys,
                n=total,
            )
        )
    _micro(work, each, where)


def _micro(work: Work, each: int, where: str) -> None:
    train, length = work.section("train"), work.section("prepare").get("max_length")
    if train.get("packing") is False and each > 1:
        work.notes.append(t("train.micro_batch_size is left out: unpacked dialogues run singly, to the same result"))
    elif train.get("packing") is True and "train.packing" in work.places and type(length) is int:
        if "token_budget" not in train:  # elsewhere a micro-batch is so many packed rows, here so many dialogues
            work.put("train.token_budget", each * length, where)
            work.notes.append(
                t(
                    "{n} packed rows of {length} tokens: train.token_budget is {budget}",
                    n=each,
                    length=length,
                    budget=each * length,
                )
            )
    elif work.put("train.micro_batch_size", each, where):
        work.notes.append(
            t(
                "{where}: train.micro_batch_size is {n}; without it train.token_budget alone limits a pass",
                where=where,
                n=each,
            )
        )


def _strategies(work: Work) -> None:
    """Who says every how many steps wants it done by steps."""
    train = work.section("train")
    for what in ("save", "eval"):
        if train.get(f"{what}_steps") is not None and f"{what}_strategy" not in train:
            train[f"{what}_strategy"] = "steps"
            work.notes.append(t("train.{what}_steps is given, so train.{what}_strategy is steps", what=what))


def _leaf(path: Any) -> str:
    parts = [p for p in re.split(r"[/\\]+", path) if p not in {"", ".", ".."}] if isinstance(path, str) else []
    name = re.sub(r"[^\w.-]+", "-", parts[-1])[:64].strip("-.") if parts else ""
    if not name:
        raise Wrong(t("a name of letters and digits"))
    return name


def _name(work: Work) -> None:
    """The run's name, else the last part of the output folder, names the run."""
    run, folder = work.pick("name", _leaf, "run_name"), work.pick("name", _leaf, "output_dir")
    if run and work.put("name", run[1], run[0]):
        work.called(run[0], "name")
    if folder and "name" in work.out:
        work.drop(folder[0], t("runs lie in runs/<name>-<number>"))
    elif folder and work.put("name", folder[1], folder[0]):
        work.called(folder[0], "name", lambda: t("runs lie in runs/<name>-<number>"))
