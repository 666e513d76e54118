"""The words of docs/*/methods.md, in English and Chinese. Numbers come from methods.json alone."""

from __future__ import annotations

PAGE: dict[str, tuple[str, str]] = {
    "title": ("Which method to choose", "选哪种方法"),
    "intro": (
        "What each method cost and reached in runs of our own, on public models and real rows. Nothing here is"
        " written by hand: the page is made from `benchmarks/methods.json` by `python -m benchmarks methods`, and"
        " a test fails when it is older. Behind each line stands the command that made it. Brackets are 95 %"
        " intervals; two methods are called better or worse only where the same rows show it (exact McNemar test"
        " for right and wrong answers, paired bootstrap and sign-flip test for losses). Small models, few rows,"
        " one seed: take the order of magnitude.",
        "各种方法在我们自己的运行里花了多少、达到了什么，用的是公开模型和真实数据。这里没有手写的数字：本页由"
        " `python -m benchmarks methods` 根据 `benchmarks/methods.json` 生成，比数据旧时测试会失败。每一行都写出"
        "得到它的命令。方括号内为 95% 置信区间；只有同样的行能够说明时，才说一种方法更好或更差（对错用精确"
        " McNemar 检验，损失用配对自助法和符号翻转检验）。模型小、行数少、只有一个种子，请看量级。",
    ),
    "measured": (
        "Measured {date} on {cpu}, {cores} cores, {memory} GB, with other programs running beside it, so no time by the"
        " clock stands here: processor time is that of the whole process (loading, training, measuring before and"
        " after). Memory is the most that the process held while training.",
        "测量于 {date}，{cpu}，{cores} 核，{memory} GB，同时有其他程序在运行，因此这里不列实际用时："
        "处理器时间是整个进程的（加载、训练、训练前后的测量）。内存是训练中进程占用的最大值。",
    ),
    "choose": ("In short", "一句话"),
    "best": (
        "{section} the best is {best}; not separable from it: {others}. Of these, the least processor time has {quick},"
        " the least memory {lean}, the fewest trained weights {few}.",
        "{section}最好的是 {best}；与它无法区分的有：{others}。其中处理器时间最少的是 {quick}，内存最少的是 {lean}，"
        "训练的参数最少的是 {few}。",
    ),
    "alone": (
        "{section} the best is {best}, by more than chance. Of all, the least processor time has {quick}, the least"
        " memory {lean}, the fewest trained weights {few}.",
        "{section}最好的是 {best}，优势超出偶然波动。全部之中，处理器时间最少的是 {quick}，内存最少的是 {lean}，"
        "训练的参数最少的是 {few}。",
    ),
    "sentiment": ("Sentiment: is a film review friendly?", "情感分类：影评是好评还是差评？"),
    "sentiment_intro": (
        "500 IMDb reviews to train, 300 others to measure. TRAIN and TEST are CSV files with review and label;"
        " the rows are not shipped. Reviews are cut from the left, to 256 tokens for all-MiniLM-L6-v2 (3 epochs)"
        " and to 128 for SmolLM2-135M (2 epochs).",
        "训练用 500 条 IMDb 影评，测量用另外 300 条。TRAIN 和 TEST 是含影评与标签的 CSV 文件，数据不随包提供。影"
        "评从左侧截断：all-MiniLM-L6-v2 到 256 token（3 遍），SmolLM2-135M 到 128 token（2 遍）。",
    ),
    "chat": ("Dialogues: a small model learns who it is", "对话：小模型学会自己是谁"),
    "chat_intro": (
        "SmolLM2-135M-Instruct, the 204 rows of `tuneloop run lora_vs_full`, of which 60 are held out; 2 epochs."
        " The held-out loss is in nats a token, lower is better. Forgetting is the change of the loss of facts in"
        " the general set that comes with tuneloop, below 0 is none.",
        "SmolLM2-135M-Instruct，数据是 `tuneloop run lora_vs_full` 的 204 行，其中 60 行作验证集；2 遍。验证集损"
        "失以每 token 的 nat 计，越低越好。遗忘是 tuneloop 自带的通用题集中常识题损失的变化，低于 0 即没有遗忘。",
    ),
    "claim": ("LoRA against full tuning", "LoRA 与全参数微调"),
    "claim_intro": (
        "The guides say that LoRA costs 15 % of full tuning and loses less than 3 % of its quality. What came out"
        " of `tuneloop run lora_vs_full` here: {ruling}.",
        "教程说 LoRA 的成本是全参数微调的 15%，质量损失不到 3%。这里 `tuneloop run lora_vs_full` 的结果：{ruling}。",
    ),
    "claim_note": (
        "The training time is by the clock on that busy machine; the processor time of the whole process was {cpu} %. A"
        " processor that trains so small a model spends its time and memory on the activations, which LoRA needs as"
        " well; what it saves are the weights' gradients and the optimizer's two moments of each.",
        "训练用时是在那台繁忙的机器上的实际用时；整个进程的处理器时间是 {cpu}%。"
        "在处理器上训练这样小的模型，时间和内存主要用在激活值上，"
        "LoRA 同样需要它们；省下的是权重的梯度，以及优化器为每个权重保存的两个矩估计。",
    ),
    "pairs": ("Any two of them, on the same rows:", "两两相比，同样的行："),
    "commands": ("The commands:", "命令："),
}

COLUMNS: dict[str, tuple[str, str]] = {
    "way": ("Model and method", "模型与方法"),
    "accuracy": ("Accuracy", "准确率"),
    "loss": ("Held-out loss", "验证集损失"),
    "probe": ("Says who it is", "说出自己是谁"),
    "forgetting": ("Forgetting", "遗忘"),
    "cpu": ("Processor time, s", "处理器时间（秒）"),
    "memory": ("Memory, GB", "内存（GB）"),
    "trained": ("Trained weights", "训练的参数"),
    "pair": ("Second against first", "后者与前者相比"),
    "difference": ("Difference", "差值"),
    "p": ("p", "p"),
    "word": ("", ""),
    "what": ("What", "项目"),
    "claimed": ("Claimed", "说法"),
    "came": ("Measured", "实测"),
}

METHODS: dict[str, tuple[str, str]] = {
    "lora": ("LoRA", "LoRA"),
    "qlora": ("QLoRA", "QLoRA"),
    "full": ("full tuning", "全参数微调"),
    "freeze": ("last two blocks", "只训练最后两层"),
    "ptuning_v2": ("P-tuning v2", "P-tuning v2"),
    "prompt_tuning": ("prompt tuning", "提示微调"),
}
