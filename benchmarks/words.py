"""The words of the pages, in English and Chinese. Numbers come from results alone."""

from __future__ import annotations

LANGUAGES = ("en", "zh")

PAGE: dict[str, tuple[str, str]] = {
    "title": ("Benchmarks", "基准测试"),
    "intro": (
        "`make bench` measures tuneloop and its peers on your machine, one after the other, each in a process of its"
        " own, and writes this page from what it measured. It installs the peers in environments of their own, below"
        " `.bench/`. Nothing here is written by hand, and every ratio is of one session on one machine: other"
        " processors, models and rows give others. Everything on this page was measured on a processor; nothing on a"
        " GPU.",
        "`make bench` 在你的机器上逐个测量 tuneloop 和同类工具，每种做法都在自己的进程里运行，本页就由测得的结果写成。"
        "同类工具装在各自的环境里（`.bench/` 下）。这里没有手写的数字；每个比值都来自同一台机器上的同一次测量，"
        "换了处理器、模型或数据，比值也会不同。本页的数字都在 CPU 上测得，没有一个来自 GPU。",
    ),
    "measured": ("Measured {session}.", "测量时间：{session}。"),
    "machine": ("Machine and versions", "机器和版本"),
    "targets": ("Targets", "目标"),
    "targets_intro": (
        "What tuneloop set out to reach, and what it reached here. Losses are held-out losses; theirs are of the way"
        " whose steps hold the same rows.",
        "tuneloop 想达到的目标，以及这次的结果。损失都是验证集损失；对比的是每步用同样多数据的那种做法。",
    ),
    "lora": ("LoRA", "LoRA"),
    "lora_intro": (
        "SmolLM2-135M-Instruct in float32, rank 8 and alpha 32 on q_proj and v_proj, 8 rows a step, learning rate 2e-4"
        " that falls in a line, {rows} Alpaca rows, one epoch. Real tokens leave padding out. Steady state is the"
        " median over the steps after the first one. Peak memory is the process's, imports and all; the held-out loss"
        " is the mean over the answer tokens of {held} other rows, measured row by row in the same way for all, ours"
        " loaded with plain PEFT. TRL runs with bf16 off, which is faster on processors without it. The tutorial is"
        " transformers' Trainer with every row padded to 512; it trains on questions as well, so its loss is of"
        " another thing.",
        "SmolLM2-135M-Instruct，float32，q_proj 和 v_proj 上 rank 8、alpha 32，每步 8 条，学习率从 2e-4 线性下降，"
        "{rows} 条 Alpaca 数据，训练一轮。真实 token 不含填充。稳定速度是第一步之后各步的中位数。内存峰值是整个进程的，"
        "包括导入；验证集损失是另外 {held} 条数据里回答 token 的平均损失，对所有做法都用同样的方式逐条测量，"
        "tuneloop 的结果只用 PEFT 加载。TRL 关闭了 bf16，在不支持它的处理器上这样更快。教程做法是 transformers 的 "
        "Trainer，每条填充到 512；它连问题也训练，所以损失的含义不同。",
    ),
    "floor": (
        "The floor: these rows need {tflop} TFLOP (forward pass and gradients of the activations through all linear"
        " layers, causal attention, the head on label tokens alone), and this machine multiplies float32 matrices of"
        " the model's shapes at {gflops} GFLOP/s, measured in the same session. That allows {rate} real tokens a"
        " second.",
        "下限：这些数据需要 {tflop} TFLOP（所有线性层的前向和激活梯度、因果注意力、只在计入损失的 token 上算输出层），"
        "这台机器以模型的形状做 float32 矩阵乘法的速度是 {gflops} GFLOP/s（同一次测量）。也就是最多每秒 {rate} 个真实 "
        "token。",
    ),
    "whole": ("A whole run, cold", "完整的一次冷启动运行"),
    "whole_intro": (
        "From the start of the process to the saved adapter: imports, loading, preparing the data, one epoch of {rows}"
        " rows, and whatever is compiled. All caches are empty.",
        "从进程启动到适配器保存：导入、加载、准备数据、{rows} 条数据训练一轮，以及所有编译。所有缓存都是空的。",
    ),
    "full": ("Full tuning", "全参数微调"),
    "full_intro": (
        "The same rows and model, every weight trained, learning rate 2e-5.",
        "同样的数据和模型，训练所有权重，学习率 2e-5。",
    ),
    "freeze": ("The last two blocks", "只训练最后两层"),
    "freeze_intro": (
        "The same {rows} rows; the last two blocks learn, the others are frozen. Seconds of the training loop up to"
        " the end of an epoch, of one run.",
        "同样的 {rows} 条数据；只训练最后两层，其余冻结。表中是同一次运行里，训练到某一轮结束所用的秒数。",
    ),
    "classify": ("Classification with a frozen encoder", "冻结编码器的分类"),
    "classify_intro": (
        "all-minilm-l6-v2 in float32 under a new head, {rows} IMDb reviews cut to 256 tokens, 8 a step, learning rate"
        " 1e-3. The peer is transformers' Trainer with dynamic padding. Loss and accuracy are of {held} test reviews.",
        "all-minilm-l6-v2，float32，加一个新的分类头，{rows} 条 IMDb 影评截到 256 个 token，每步 8 条，学习率 1e-3。"
        "对比的是动态填充的 transformers Trainer。损失和准确率来自 {held} 条测试影评。",
    ),
    "dpo": ("Preferences (DPO)", "偏好训练（DPO）"),
    "dpo_intro": (
        "SmolLM2-135M-Instruct with the LoRA of above, {rows} preference pairs, 8 a step, beta 0.1. Seconds are from"
        " loading the model to the last step: tuneloop runs the reference model before its first step, TRL in each. The"
        " loss is DPO's, of {held} other pairs.",
        "SmolLM2-135M-Instruct，LoRA 同上，{rows} 对偏好数据，每步 8 对，beta 0.1。秒数从加载模型"
        "算到最后一步：tuneloop 在第一步之前运行参考模型，TRL 在每一步里运行。损失是另外 {held} 对数据上的 DPO 损失。",
    ),
    "start": ("Start, and cost of a token", "启动时间和每个 token 的开销"),
    "start_words": (
        "With a cached dataset the first training step begins {start} s after `tuneloop train`; importing torch,"
        " transformers, peft and accelerate takes {imports} s. `tuneloop --help` answers in {help} s.",
        "数据集已有缓存时，`tuneloop train` 启动后 {start} 秒开始第一个训练步；导入 torch、transformers、peft 和 "
        "accelerate 需要 {imports} 秒。`tuneloop --help` 用 {help} 秒。",
    ),
    "flat_words": (
        "Before a token reaches the model it costs, in nanoseconds of processor time:",
        "一个 token 进入模型之前的开销（处理器时间，纳秒）：",
    ),
    "products": ("Products below float32", "低于 float32 的矩阵乘法"),
    "products_intro": (
        "Milliseconds of one layer's product at 2,048 tokens. `matmul: bfloat16` (auto, where the processor has matrix"
        " units) rounds the factors to bfloat16 and adds up in float32. int8 by row was tried as well: its product"
        " alone is quick, but the activations must be quantised for each product and the result scaled, and its error"
        " is larger. So bfloat16 is the option that was kept; processors without matrix units stay in float32.",
        "一层在 2,048 个 token 上做一次矩阵乘法的毫秒数。`matmul: bfloat16`（处理器有矩阵单元时的自动选择）把因子"
        "舍入为 bfloat16，用 float32 累加。也试过按行量化的 int8：乘法本身很快，但每次都要"
        "量化激活、缩放结果，误差也更大。"
        "所以保留的是 bfloat16；没有矩阵单元的处理器仍用 float32。",
    ),
    "prepare": ("Preparing data", "准备数据"),
    "prepare_intro": (
        "Raw chat rows to packed batches with masks, one thread. The bound is a hand-written pipeline for this one"
        " template that checks nothing.",
        "从原始对话到打包好的、带掩码的批次，单线程。bound 是只为这一个模板手写、不做任何检查的流程。",
    ),
    "near": ("Near repetitions", "近似重复"),
    "near_intro": (
        "Repetitions planted in random Chinese text, looked for at a Jaccard similarity of 0.8.",
        "在随机中文文本里埋入重复，按 Jaccard 相似度 0.8 查找。",
    ),
    "failed": (
        "These ways failed in this session and are left out: {ways}.",
        "这次测量中失败、因此没有列出的做法：{ways}。",
    ),
}

TARGETS: dict[str, tuple[str, str]] = {
    "lora_trl": ("LoRA, speed over TRL's defaults (bf16 off)", "LoRA，速度与 TRL 默认设置（关闭 bf16）之比"),
    "lora_llamafactory": ("LoRA, speed over LLaMA-Factory's defaults", "LoRA，速度与 LLaMA-Factory 默认设置之比"),
    "lora_best": ("LoRA, speed over the best peer", "LoRA，速度与最快的同类做法之比"),
    "lora_tutorial": ("LoRA, speed over the tutorial", "LoRA，速度与教程做法之比"),
    "lora_floor": ("LoRA, time over the floor", "LoRA，用时与下限之比"),
    "lora_memory": ("LoRA, peak memory over the leanest peer's", "LoRA，内存峰值与最省内存的同类做法之比"),
    "lora_loss": ("LoRA, loss over TRL's", "LoRA，损失与 TRL 之比"),
    "whole": ("LoRA, whole cold run, TRL's time over ours", "LoRA，完整冷启动运行，TRL 用时与 tuneloop 之比"),
    "reduced": ("LoRA with `matmul: auto`, speed over our float32", "LoRA，`matmul: auto`，速度与自身 float32 之比"),
    "reduced_loss": (
        "LoRA with `matmul: auto`, loss over our float32's",
        "LoRA，`matmul: auto`，损失与自身 float32 之比",
    ),
    "full": ("Full tuning, speed over the best peer", "全参数微调，速度与最快的同类做法之比"),
    "full_loss": ("Full tuning, loss over TRL's", "全参数微调，损失与 TRL 之比"),
    "freeze_3": (
        "Last two blocks, 3 epochs, best peer's time over ours",
        "最后两层，训练 3 轮，最快的同类做法用时与 tuneloop 之比",
    ),
    "freeze_10": (
        "Last two blocks, 10 epochs, best peer's time over ours",
        "最后两层，训练 10 轮，最快的同类做法用时与 tuneloop 之比",
    ),
    "freeze_loss": ("Last two blocks, loss over LLaMA-Factory's", "最后两层，损失与 LLaMA-Factory 之比"),
    "classify": (
        "Frozen encoder, 5 epochs, Trainer's time over ours",
        "冻结编码器，训练 5 轮，Trainer 用时与 tuneloop 之比",
    ),
    "classify_loss": ("Frozen encoder, loss over Trainer's", "冻结编码器，损失与 Trainer 之比"),
    "dpo": ("DPO, speed over TRL's best", "DPO，速度与 TRL 最快的设置之比"),
    "dpo_loss": ("DPO, loss over TRL's", "DPO，损失与 TRL 之比"),
    "start": ("First step, time over that of the imports", "第一步开始的时间与导入时间之比"),
    "flat": ("Cost of a token, 1,000,000 samples over 1,000", "每个 token 的开销，1,000,000 条样本与 1,000 条之比"),
}

WAYS: dict[str, tuple[str, str]] = {
    "tuneloop": ("tuneloop", "tuneloop"),
    "tuneloop-reduced": ("tuneloop, `matmul: auto`", "tuneloop，`matmul: auto`"),
    "trl": ("TRL, bf16 off", "TRL，关闭 bf16"),
    "trl-no-checkpointing": ("TRL, no checkpointing", "TRL，关闭梯度检查点"),
    "trl-padding-free": ("TRL, padding_free", "TRL，padding_free"),
    "trl-packing": ("TRL, packing, no checkpointing", "TRL，打包，关闭梯度检查点"),
    "llamafactory": ("LLaMA-Factory", "LLaMA-Factory"),
    "tutorial": ("tutorial, padded to 512", "教程，填充到 512"),
    "trainer": ("transformers' Trainer", "transformers 的 Trainer"),
}

COLUMNS: dict[str, tuple[str, str]] = {
    "way": ("Way", "做法"),
    "rate": ("Real tokens/s", "真实 token/s"),
    "ours": ("tuneloop over it", "tuneloop 与它之比"),
    "step": ("Step, s", "每步，秒"),
    "work": ("Load and train, s", "加载加训练，秒"),
    "wall": ("Whole, s", "全程，秒"),
    "cpu": ("Whole, CPU s", "全程 CPU，秒"),
    "peak": ("Peak, GB", "峰值，GB"),
    "held": ("Held-out loss", "验证集损失"),
    "accuracy": ("Right", "准确率"),
    "epochs": ("{n} epochs, s", "训练 {n} 轮，秒"),
    "target": ("Target", "目标"),
    "wanted": ("Wanted", "要求"),
    "reached": ("Reached", "达到"),
    "good": ("Yes or no", "是否"),
    "what": ("What", "项目"),
    "shape": ("Inputs x outputs", "输入 × 输出"),
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "int8_product": ("int8, product alone", "int8，仅乘法"),
    "int8": ("int8, whole", "int8，全部"),
    "bfloat16_error": ("bfloat16, error", "bfloat16 误差"),
    "int8_error": ("int8, error", "int8 误差"),
    "samples": ("Samples", "样本数"),
    "plan": ("Plan and order", "计划和顺序"),
    "pack": ("Packing", "打包"),
    "tokenizer": ("Tokenizer", "tokenizer"),
    "rows_s": ("Rows a CPU second", "每 CPU 秒行数"),
    "rows": ("Rows of characters", "行数 × 字数"),
    "seconds": ("Seconds", "秒"),
    "recall": ("Recall", "召回率"),
    "precision": ("Precision", "精确率"),
}

FACTS: dict[str, tuple[str, str]] = {
    "cpu": ("Processor", "处理器"),
    "cores": ("Cores used", "使用的核心数"),
    "can": ("It has", "指令"),
    "memory": ("Memory", "内存"),
    "system": ("System", "系统"),
    "tuneloop": ("tuneloop's environment", "tuneloop 的环境"),
    "trl": ("TRL's environment", "TRL 的环境"),
    "llamafactory": ("LLaMA-Factory's environment", "LLaMA-Factory 的环境"),
}

VERDICT: dict[bool | None, tuple[str, str]] = {True: ("yes", "是"), False: ("no", "否"), None: ("not measured", "未测")}
WITHIN = ("within {n}", "相差不超过 {n}")


def say(words: tuple[str, str], language: str, **values: object) -> str:
    """One of the two, filled in."""
    return words[LANGUAGES.index(language)].format(**values)
