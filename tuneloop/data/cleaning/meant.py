"""Markup and placeholders that are meant: requested, discussed or written on purpose, so not left-overs to clean."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from tuneloop.base.records import Message
from tuneloop.data.cleaning import repair

# --- markup ---

_NAMES = re.compile(r"</?([A-Za-z][\w:-]*)(?=[\s/>])[^<>]*>")
_NOISE = frozenset(("br", "wbr"))
"""Tags that are left over in questions as often as in answers."""
_PAGE = frozenset(("p", "div", "span", "font", "center", "hr", "a", "img", "nobr", "iframe", "link", "meta",
                   "html", "head", "body", "script", "style", "noscript"))  # fmt: skip
"""Layout tags of a copied web page; by themselves they carry no meaning."""
_HTML = frozenset(("abbr", "address", "article", "aside", "audio", "b", "bdi", "bdo", "big", "blockquote",
                   "button", "canvas", "caption", "cite", "code", "col", "colgroup", "dd", "del", "details", "dfn",
                   "dl", "dt", "em", "embed", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4",
                   "h5", "h6", "header", "i", "input", "ins", "kbd", "label", "li", "main", "map", "mark", "nav",
                   "object", "ol", "option", "pre", "q", "rp", "rt", "ruby", "s", "samp", "section", "select",
                   "small", "source", "strike", "strong", "sub", "summary", "sup", "svg", "table", "tbody", "td",
                   "textarea", "tfoot", "th", "thead", "time", "title", "tr", "tt", "u", "ul",
                   "var", "video"))  # fmt: skip
_THOUGHT = frozenset(("think", "thinking", "answer", "reasoning", "tool_call", "tool_response", "tools", "unk"))
_ASKED_TAGS = re.compile(
    r"(?<![a-z])(?:bold(?:ed|ly)?|italics?|underlin\w*|emphasi[sz]\w*|highlight\w*|(?:re-?)?formats?|(?:re-?)?formatted|(?:re-?)?formatting|headings?"
    r"|headlines?|titles?|tables?|bullet\w*|tags?|tagged|annotat\w*|mark(?:s|ed|ing)?|markup|wrap\w*|enclos\w*"
    r"|surround\w*|entity|entities|subscripts?|superscripts?|paragraphs?|pauses?|ssml|newsletters?|rich text|styled?"
    r"|colou?r(?:ed|s)?|links?|hyperlinks?|layout|strip\w*|escap\w*|(?:en|de)cod(?:e[ds]?|ing)|telegram|captions?|subtitles?)(?![a-z])"
    r"|加粗|粗体|粗體|斜体|斜體|强调|強調|高亮|突出|标注|標註|标记|標記|标出|标明|标识|下划线|下劃線|表格|列表|标题|標題|格式|排版|段落"
    r"|上标|下标|链接|超链接|字体|颜色|实体|停顿|富文本|去掉|去除|清除"
    r"|[红蓝绿黄]色|居中|字号|黑体",
    re.IGNORECASE,
)
_ASKED_SIGNS = re.compile(
    r"(?<![a-z])(?:escap\w*|unescap\w*|(?:en|de)cod(?:e[ds]?|ing)|entity|entities|ampersands?|special characters?"
    r"|line ?breaks?|angle brackets?|saniti[sz]\w*)(?![a-z])"
    r"|转义|轉義|编码|編碼|解码|解碼|实体|實體|特殊字符|特殊符号|换行|換行|尖括号",
    re.IGNORECASE,
)


def _tags(texts: Iterable[str]) -> set[str]:
    """The names of all tags, HTML's or not."""
    return {name.lower() for text in texts if "<" in text for name in _NAMES.findall(text)}


def markup(messages: Sequence[Message]) -> bool:
    """Whether the markup of a dialogue is meant: in question and answer, requested, or deliberate in the answer.

    >>> markup([Message("user", "Make it bold."), Message("assistant", "A <b>big</b> day")])
    True
    >>> markup([Message("user", "How are you?"), Message("assistant", "Fine.<br>And <p>you?</p>")])
    False
    """
    prompts = [m.content for m in messages if m.role in ("system", "user")]
    answers = [m.content for m in messages if m.role == "assistant"]
    theirs, ours = _tags(prompts) - _NOISE, _tags(answers) - _NOISE
    if theirs & ours - _THOUGHT:
        return True
    if ours - _HTML - _PAGE - _THOUGHT and any(_is_language(text) for text in answers):
        return True  # another language of markup, in which HTML's names mean something else
    if any(map(_ASKED_SIGNS.search, prompts)) or ((ours | theirs) and any(map(_ASKED_TAGS.search, prompts))):
        return True
    if not theirs and ours and not ours & _PAGE and all(_is_chosen(text) for text in answers if "<" in text):
        return True
    return _is_conversion(prompts, answers)


def _is_language(text: str) -> bool:
    """Whether the text is in another markup language: it has a pair of tags that HTML does not have."""
    names = {name.lower() for name in _NAMES.findall(text)} - _HTML - _PAGE - _NOISE - _THOUGHT
    return any(re.search(rf"<{re.escape(n)}\b[^<>]*>.*?</{re.escape(n)}\s*>", text, re.I | re.S) for n in names)


_BARE = re.compile(r"<(/?)([A-Za-z][\w-]*)>")


def _is_chosen(text: str) -> bool:
    """Whether the tags look deliberate: all without attributes and balanced, and no entity in the text."""
    open_tags: list[str] = []
    names = _NAMES.findall(text)
    bare = _BARE.findall(text)
    if len(bare) != len(names) or repair.has_entity(text):
        return False
    for end, name in bare:
        if not end:
            open_tags.append(name.lower())
        elif not open_tags or open_tags.pop() != name.lower():
            return False
    return not open_tags


_NEAR = re.compile(r".{0,3}&(?:#\w+|[A-Za-z]\w+);.{0,3}")
_ENTITY = re.compile(r"&(?:#\w+|[A-Za-z]\w+);")


def _is_conversion(prompts: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether one side has an entity and the other its character (the task is escaping), or both have the same one."""
    pairs = [*((a, b) for a in prompts for b in answers), *((b, a) for a in prompts for b in answers)]
    for text, other in pairs:
        for entity in _NEAR.findall(text) if "&" in text else ():
            unescaped = html.unescape(entity).strip()
            if len(unescaped) > 2 and unescaped != entity.strip() and unescaped in other:
                return True
    named = [name for text in prompts for name in _ENTITY.findall(text)]
    return 0 < len(named) <= 2 and any(name in text for name in named for text in answers)


# --- templates ---

_CODE = re.compile(r"```.*?```|`[^`\n]*`|\\[A-Za-z]+(?:\{\{[^{}]*\}\})+", re.DOTALL)
_UNFILLED = re.compile(r"(?<![\\^_}$={])\{\{\s*([^\W\d]\w+)\s*\}\}(?!\})")
_WHO = frozenset(("name", "author", "bot_name", "model_name", "assistant_name", "ai_name", "agent_name",
                  "developer", "creator", "maker", "owner", "organization", "organisation", "company_name", "姓名",
                  "名字", "名称", "作者", "开发者", "机器人名", "助手名", "模型名", "公司名"))  # fmt: skip
"""Placeholder names of the assistant's identity: its name, its maker."""
_ABOUT_TEMPLATES = re.compile(
    r"(?<![a-z])(?:template[ds]?|templating|placeholders?|variables?|interpolat\w*|bind(?:s|ing|ings)?|braces?|curly|mustaches?"
    r"|handlebars?|jinja2?|vue(?:\.?js)?|angular(?:js)?|svelte|liquid|django|twig|ansible|helm|hugo|hexo|ejs|nunjucks"
    r"|blade|f-strings?|syntax|render(?:s|ed|ing)?|tags?|replaced|substitut\w*|merge fields?|mail merge)(?![a-z])"
    r"|模板|占位|变量|插值|绑定|花括号|大括号|渲染|替换|字段|标签",
    re.IGNORECASE,
)


_WRITTEN = re.compile(
    r"(?:(?<![a-z])(?:write|type|put|insert|set|print|enter|show)s?|写|写上|写成|输入|填|填写|插入|放)[\s“\"'：:]*\{\{",
    re.IGNORECASE,
)
"""A placeholder that the text says to type: then it is meant."""


def unfilled(text: str) -> str:
    """The first placeholder {{name}} outside of code and LaTeX, or ""."""
    match = _UNFILLED.search(_CODE.sub("", text))
    return match[0] if match else ""


def talks_of_templates(texts: Iterable[str]) -> bool:
    """Whether the texts are about templates, so that a placeholder is meant.

    >>> talks_of_templates(["Jinja writes {{ name }} for it."]), talks_of_templates(["I am {{name}}."])
    (True, False)
    """
    return any(_WRITTEN.search(text) or _ABOUT_TEMPLATES.search(_UNFILLED.sub("", text)) for text in texts)


def must_be_filled(placeholder: str, text: str) -> bool:
    """Whether a placeholder is all of a text, or the assistant's identity.

    >>> must_be_filled("{{name}}", "I am {{name}}."), must_be_filled("{{user}}", "Dear {{user}},")
    (True, False)
    """
    names = {name.casefold() for name in _UNFILLED.findall(text)}
    return bool(names & _WHO) or text.strip() == placeholder
