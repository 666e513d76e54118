"""Answers that refuse: they open by saying that they cannot or will not help.

The list is conservative. An answer counts only where one of these phrases stands in its first sentence, from its start
on; what is said later ("I cannot stress enough") does not.
"""

from __future__ import annotations

import re
import unicodedata

OPENINGS = (
    # English, after an optional apology
    r"(i am|i'm|we are|we're) (so |very |really |truly |deeply )?sorry,? (but |that |as )?(i|we|this|that|it|as an)\b"
    r".{0,60}\b(can't|cannot|can not|unable|won't|will not|not able|don't|do not|not (something|appropriate))\b",
    r"i (can't|cannot|can not|won't|will not) (help|assist|provide|answer|create|write|generate|comply|fulfil|fulfill|"
    r"support|engage|discuss|share|give|offer|do that|do this|participate|continue|produce|complete|advise)\b",
    r"i (am|'m) (not able|unable) to (help|assist|provide|answer|create|write|generate|comply|fulfil|fulfill|support|"
    r"discuss|share|give|offer|engage|do)\b",
    r"i'm (not able|unable) to (help|assist|provide|answer|create|write|generate|comply|fulfil|fulfill|support|"
    r"discuss|share|give|offer|engage|do)\b",
    r"(i )?must (respectfully )?(decline|refuse)\b",
    r"as an? (ai|artificial intelligence|language model|large language model)\b[^.!?]{0,80}"
    r"\b(can't|cannot|can not|unable|won't|will not|not able)\b",
    # Chinese, after an optional apology
    r"(很|非常|十分|真的)?(抱歉|对不起|不好意思)[,，。!！ ]*(但|但是)?(作为[^,，。]{0,20}[,，])?(我|本人|这个问题我)?"
    r"(目前|现在|暂时)?(不能|无法|没法|没有办法|没办法|不可以|不会|不便)(帮|为您|为你|给您|给你|提供|回答|协助|满足|完成|"
    r"执行|生成|创建|写|讨论|参与|处理|支持|解答|继续)",
    r"(我|本人)(目前|现在|暂时)?(不能|无法|没法|没办法|不可以|不便)(帮|为您|为你|给您|给你|提供|回答|协助|满足|完成|执行|"
    r"生成|创建|讨论|参与|解答)",
    r"作为(一个|一名|一款)?(ai|人工智能|语言模型|大语言模型|智能助手|人工智能助手|ai助手|人工智能语言模型|ai语言模型)"
    r"[^。!！?？]{0,20}(不能|无法|没法|没有办法|没办法|不会)",
    r"(我|本人)?(拒绝|谢绝)(回答|提供|协助|参与|完成)",
)
_APOLOGY = r"(sorry[,.!]? (but )?|i apologi[sz]e[,.]? (but )?|unfortunately,? |my apologies[,.]? (but )?)?"
_REFUSES = re.compile(rf"{_APOLOGY}(?:{'|'.join(OPENINGS)})")


def refuses(answer: str) -> bool:
    """Whether an answer opens with a refusal.

    >>> refuses("I'm sorry, but I can't help with that."), refuses("抱歉，我无法提供这方面的帮助。")
    (True, True)
    >>> refuses("I can't wait to see you!"), refuses("很抱歉听到这个消息，我们可以聊聊。"), refuses("")
    (False, False, False)
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("’", "'")
    return _REFUSES.match(" ".join(text.split())[:300]) is not None
