"""What looks like a left-over and is the point of a text: markup that was asked for, templates that are spoken of."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from tuneloop.base.records import Message
from tuneloop.data.cleaning import repair

# --- markup ---

_NAMES = re.compile(r"</?([A-Za-z][\w:-]*)(?=[\s/>])[^<>]*>")
_NOISE = frozenset(("br", "wbr"))
"""Left over on both sides of a dialogue as often as on one."""
_PAGE = frozenset(("p", "div", "span", "font", "center", "hr", "a", "img", "nobr", "iframe", "link", "meta",
                   "html", "head", "body", "script", "style", "noscript"))  # fmt: skip
"""Tags of a page that was copied; by themselves they give a text no meaning."""
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
    """Whether the markup of a dialogue is meant: it recurs on both sides, is asked for, or was chosen by who answers.

    >>> markup([Message("user", "Make it bold."), Message("assistant", "A <b>big</b> day")])
    True
    >>> markup([Message("user", "How are you?"), Message("assistant", "Fine.<br>And <p>you?</p>")])
    False
    """
    asked = [m.content for m in messages if m.role in ("system", "user")]
    answers = [m.content for m in messages if m.role == "assistant"]
    theirs, ours = _tags(asked) - _NOISE, _tags(answers) - _NOISE
    if theirs & ours - _THOUGHT:
        return True
    if ours - _HTML - _PAGE - _THOUGHT and any(_is_language(text) for text in answers):
        return True  # another language of markup, in which HTML's names mean something else
    if any(map(_ASKED_SIGNS.search, asked)) or ((ours | theirs) and any(map(_ASKED_TAGS.search, asked))):
        return True
    if not theirs and ours and not ours & _PAGE and all(_is_chosen(text) for text in answers if "<" in text):
        return True
    return _is_conversion(asked, answers)


def _is_language(text: str) -> bool:
    """Whether a pair of tags that HTML does not have encloses something."""
    names = {name.lower() for name in _NAMES.findall(text)} - _HTML - _PAGE - _NOISE - _THOUGHT
    return any(re.search(rf"<{re.escape(n)}\b[^<>]*>.*?</{re.escape(n)}\s*>", text, re.I | re.S) for n in names)


_BARE = re.compile(r"<(/?)([A-Za-z][\w-]*)>")


def _is_chosen(text: str) -> bool:
    """Whether all tags of a text are bare and in pairs, and it has no entity: somebody wrote them on purpose."""
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


def _is_conversion(asked: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether one side says with an entity what the other one says with its sign, or both speak of the same entity."""
    pairs = [*((a, b) for a in asked for b in answers), *((b, a) for a in asked for b in answers)]
    for text, other in pairs:
        for found in _NEAR.findall(text) if "&" in text else ():
            plain = html.unescape(found).strip()
            if len(plain) > 2 and plain != found.strip() and plain in other:
                return True
    named = [name for text in asked for name in _ENTITY.findall(text)]
    return 0 < len(named) <= 2 and any(name in text for name in named for text in answers)


# --- templates ---

_CODE = re.compile(r"```.*?```|`[^`\n]*`|\\[A-Za-z]+(?:\{\{[^{}]*\}\})+", re.DOTALL)
_UNFILLED = re.compile(r"(?<![\\^_}$={])\{\{\s*([^\W\d]\w+)\s*\}\}(?!\})")
_WHO = frozenset(("name", "author", "bot_name", "model_name", "assistant_name", "ai_name", "agent_name",
                  "developer", "creator", "maker", "owner", "organization", "organisation", "company_name", "姓名",
                  "名字", "名称", "作者", "开发者", "机器人名", "助手名", "模型名", "公司名"))  # fmt: skip
"""What identity data has in place of who the assistant is and who made it."""
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
"""Somebody is told to write it: then it is what he will write."""


def unfilled(text: str) -> str:
    """The first {{name}} outside of code, LaTeX and the like, or nothing."""
    found = _UNFILLED.search(_CODE.sub("", text))
    return found[0] if found else ""


def talks_of_templates(texts: Iterable[str]) -> bool:
    """Whether a {{name}} is what the texts are about.

    >>> talks_of_templates(["Jinja writes {{ name }} for it."]), talks_of_templates(["I am {{name}}."])
    (True, False)
    """
    return any(_WRITTEN.search(text) or _ABOUT_TEMPLATES.search(_UNFILLED.sub("", text)) for text in texts)


def must_be_filled(found: str, text: str) -> bool:
    """Whether a placeholder is all that a text says, or stands for who the assistant is.

    >>> must_be_filled("{{name}}", "I am {{name}}."), must_be_filled("{{user}}", "Dear {{user}},")
    (True, False)
    """
    names = {name.casefold() for name in _UNFILLED.findall(text)}
    return bool(names & _WHO) or text.strip() == found
