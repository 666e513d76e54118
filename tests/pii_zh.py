"""Chinese sentences with made-up personal data whose check digits are right, and with numbers that only look so.

Check digits are computed here once more, from the standards' own tables, and not with the code under test.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable

KINDS = ("id_card", "mobile", "phone", "bank_card", "email", "ip", "mac", "api_key", "iban", "passport")

WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
REGIONS = ("110101", "310115", "440305", "510107", "330106", "420111", "610113", "320508", "370202", "652301")
AREAS = ("010", "021", "020", "0755", "0571", "028", "0512", "0931")
HALF = string.digits + "Xx+-@."
WIDE = str.maketrans(HALF, "".join(chr(ord(c) + 0xFEE0) for c in HALF))

AROUND = {
    "id_card": ["我的身份证号是{}，麻烦登记一下。", "身份证：{}", "请核对证件号码{}是否正确", "{}这个号办的暂住证", "患者王某，{}，男"],
    "mobile": ["我的手机号是{}，微信同号。", "有事打{}找我", "联系人李女士{}", "收货人：张伟 {} 北京市海淀区", "电话:{}（晚上九点前）", "加我{}"],
    "phone": ["办公室电话{}，上班时间都在。", "酒店前台{}", "可以拨打{}咨询", "传真：{}", "公司座机是{}。"],
    "bank_card": ["请把钱打到{}，户名张三。", "工行卡号：{}", "我的银行卡{}丢了怎么挂失？", "尾号不对，应该是{}", "还款账户{}，谢谢"],
    "email": ["简历发到{}吧", "邮箱：{}，收到请回复。", "我的邮件地址是{}", "（{}）", "抄送{}和财务部"],
    "ip": ["服务器地址是{}，端口8080。", "从{}登录失败了三次", "ping不通{}怎么办？", "把DNS改成{}试试", "来源IP：{}"],
    "mac": ["路由器的MAC地址是{}。", "设备{}已上线", "绑定网卡{}和端口"],
    "api_key": ["我把key写在代码里了：{}，会泄露吗？", "export API_KEY={}", "请求头里带上 {} 就行", "配置文件里有一行 secret: \"{}\"。"],
    "iban": ["请汇款到IBAN {}，德国的账户。", "收款账号：{}", "国际汇款账号是{}。"],
    "passport": ["护照号{}，六月出发。", "我的护照号码是{}", "港澳通行证：{}"],
}  # fmt: skip

CITIES = ("北京", "上海", "杭州", "成都")


def _digits(draw: random.Random, n: int) -> str:
    return "".join(draw.choices(string.digits, k=n))


def _id17(draw: random.Random) -> str:
    day = f"{draw.randint(1940, 2015)}{draw.randint(1, 12):02}{draw.randint(1, 28):02}"
    return draw.choice(REGIONS) + day + _digits(draw, 3)


def _id_end(first: str) -> str:
    return "10X98765432"[sum(w * int(d) for w, d in zip(WEIGHTS, first, strict=True)) % 11]


def id_card(draw: random.Random) -> str:
    first = _id17(draw)
    last = _id_end(first)
    return first + (last.lower() if draw.random() < 0.2 else last)


def mobile(draw: random.Random) -> str:
    number = "1" + draw.choice("3456789") + _digits(draw, 9)
    parts = (number[:3], number[3:7], number[7:])
    form = draw.choice(
        ["{0}{1}{2}"] * 4 + ["{0} {1} {2}", "{0}-{1}-{2}", "+86{0}{1}{2}", "+86 {0} {1} {2}", "86-{0}{1}{2}"]
    )
    return form.format(*parts)


def phone(draw: random.Random) -> str:
    area, number = draw.choice(AREAS), draw.choice("2345678") + _digits(draw, 7)
    form = draw.choice(["{0}-{1}", "{0}-{1}", "({0}){1}", "{0} {1}", "{0}-{1}-8012", "+86-{2}-{1}", "400-{3}-{4}"])
    return form.format(area, number, area[1:], number[:3], number[4:])


def _luhn_end(body: str) -> str:
    total = 0
    for n, c in enumerate(reversed(body)):
        d = int(c) * (2 if n % 2 == 0 else 1)
        total += d // 10 + d % 10
    return str(-total % 10)


def bank_card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        [("622202", 19), ("621700", 19), ("622588", 16), ("625", 16), ("4", 16), ("53", 16), ("37", 15)]
    )
    body = prefix + _digits(draw, length - 1 - len(prefix))
    number = body + _luhn_end(body)
    if length == 15 or draw.random() < 0.6:
        return number
    return draw.choice(" -").join(number[i : i + 4] for i in range(0, length, 4))


def email(draw: random.Random) -> str:
    name = draw.choice(
        ["zhang.wei", "li_na", "wangfang", "xiaoming2020", "sales", "a-b", _digits(draw, 9), "13800138000"]
    )
    return f"{name}@{draw.choice(['qq.com', '163.com', 'example.com.cn', 'mail.tsinghua.edu.cn', 'gmail.com', 'foo-bar.io'])}"


def ip(draw: random.Random) -> str:
    if draw.random() < 0.3:
        groups = [f"{draw.randint(0, 65535):x}" for _ in range(7)]
        return draw.choice(
            [":".join(["2408", *groups]), f"2001:db8::{draw.randint(4096, 65535):x}", f"fe80::{':'.join(groups[:4])}"]
        )
    return f"{draw.choice([10, 172, 192, 47, 8, 221])}." + ".".join(str(draw.randint(0, 255)) for _ in range(3))


def mac(draw: random.Random) -> str:
    pairs = [f"{draw.randint(0, 255):02x}" for _ in range(5)]
    text = draw.choice(":-").join(["3c", *pairs])
    return text.upper() if draw.random() < 0.5 else text


def api_key(draw: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    prefix, n, chars = draw.choice(
        [("sk-", 48, letters), ("sk-", 32, "0123456789abcdef"), ("ghp_", 36, letters), ("AKIA", 16, string.ascii_uppercase + "234567"),
         ("AIza", 35, letters + "_-"), ("hf_", 34, letters), ("glpat-", 20, letters), ("xoxb-", 40, letters), ("LTAI", 20, letters)]
    )  # fmt: skip
    return prefix + "".join(draw.choices(chars, k=n - 1)) + draw.choice("0123456789" if prefix != "AKIA" else "234567")


def iban(draw: random.Random) -> str:
    country, body = draw.choice(
        [("DE", _digits(draw, 18)), ("NL", "ABNA" + _digits(draw, 10)), ("GB", "WEST" + _digits(draw, 14))]
    )
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    text = f"{country}{98 - number % 97:02}{body}"
    return text if draw.random() < 0.5 else " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def passport(draw: random.Random) -> str:
    return draw.choice(["E", "G", "EA", "C"]) + _digits(draw, 8)


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "id_card": id_card, "mobile": mobile, "phone": phone, "bank_card": bank_card, "email": email, "ip": ip, "mac": mac,
    "api_key": api_key, "iban": iban, "passport": passport,
}  # fmt: skip


def _wrong_id(draw: random.Random) -> str:
    first = _id17(draw)
    return first + draw.choice([c for c in string.digits + "X" if c != _id_end(first)])


def _wrong_card(draw: random.Random) -> str:
    body = "622202" + _digits(draw, 12)
    return body + draw.choice([c for c in string.digits if c != _luhn_end(body)])


def _stamp(draw: random.Random) -> str:
    return f"2023{draw.randint(1, 12):02}{draw.randint(1, 28):02}{draw.randint(0, 23):02}{draw.randint(0, 59):02}{draw.randint(0, 59):02}"


NEGATIVES: list[Callable[[random.Random], str]] = [
    lambda d: f"订单号：{d.choice('123456789')}{_digits(d, d.randint(9, 18))}，请尽快发货",
    lambda d: f"订单{_stamp(d)}{_digits(d, d.choice([3, 4, 5]))}已签收",
    lambda d: f"快递单号SF{_digits(d, 13)}，到{d.choice(CITIES)}了",
    lambda d: f"运单号 7{_digits(d, 14)} 查不到",
    lambda d: f"交易流水号为{_digits(d, 28)}",
    lambda d: f"日志时间戳是{d.randint(1600000000, 1799999999)}",
    lambda d: f"毫秒时间戳{d.randint(1600000000000, 1799999999999)}怎么转成日期？",
    lambda d: f"备份文件{_stamp(d)}.zip",
    lambda d: f"软件升级到版本 {d.randint(1, 20)}.{d.randint(0, 30)}.{d.randint(0, 9)}.{d.randint(0, 200)} 后变慢",
    lambda d: f"固件v{d.randint(1, 20)}.{d.randint(0, 30)}.{d.randint(0, 9)}.{d.randint(0, 200)}有漏洞",
    lambda d: f"见第{d.randint(1, 9)}.{d.randint(1, 9)}.{d.randint(1, 9)}.{d.randint(1, 9)}节的说明",
    lambda d: f"QQ：{d.randint(10000, 3999999999)}，验证写名字",
    lambda d: f"QQ群号{d.randint(100000000, 999999999)}",
    lambda d: f"ISBN 978-7-{_digits(d, 3)}-{_digits(d, 5)}-{d.randint(0, 9)}",
    lambda d: f"书号9787{_digits(d, 9)}",
    lambda d: f"商品条码69{_digits(d, 11)}",
    lambda d: f"总价{d.randint(1, 99999)}.{d.randint(0, 99):02}元，预算{d.randint(10**10, 10**11 - 1)}元",
    lambda d: f"身份证号{_wrong_id(d)}校验不通过",
    lambda d: f"这个18位编号{_wrong_id(d)}不是身份证",
    lambda d: f"卡号{_wrong_card(d)}输错了一位",
    lambda d: f"学号2021{_digits(d, 8)}的同学请到教务处",
    lambda d: f"股票{d.choice(['600519', '000858', '300750'])}收盘{d.randint(1, 3000)}.{d.randint(0, 99):02}",
    lambda d: f"{d.randint(1900, 2029)}年{d.randint(1, 12)}月{d.randint(1, 28)}日，邮编{_digits(d, 6)}，人口{_digits(d, 8)}人",
    lambda d: f"会议时间2024-0{d.randint(1, 9)}-1{d.randint(0, 9)} 1{d.randint(0, 9)}:30:00，会议号见群里",
    lambda d: f"圆周率是3.14159265358979，比例{d.randint(1, 9)}:{d.randint(1, 9)}:{d.randint(1, 9)}",
    lambda d: f"提交{''.join(d.choices('0123456789abcdef', k=40))}引入了这个错误",
    lambda d: f"请填写 api_key=your_api_key_here，端口{d.randint(1024, 65535)}",
    lambda d: f"编码{d.randint(1, 9)}{_digits(d, d.randint(13, 18))}对应的是哪一项？",
    lambda d: f"共处理{_digits(d, 9)}条，耗时{d.randint(10**9, 10**10)}纳秒，哈希{_digits(d, 20)}",
    lambda d: f"图片logo@{d.randint(2, 3)}x.png，关注@用户{_digits(d, 4)}",
]  # fmt: skip


def sentences(seed: int, each: int = 60, negatives: int = 25) -> list[tuple[str, set[tuple[int, int, str]]]]:
    """(text, {(start, end, kind)}): `each` sentences a kind, some with two, and `negatives` of each kind of look-alike."""
    draw = random.Random(seed)
    rows = []
    for kind in KINDS:
        for _ in range(each):
            text, gold = "", set()
            for this in [kind] if draw.random() < 0.7 else [kind, draw.choice(KINDS)]:
                value = MAKERS[this](draw)
                if this in ("id_card", "mobile", "bank_card") and draw.random() < 0.15:
                    value = value.translate(WIDE)
                before, after = draw.choice(AROUND[this]).split("{}")
                start = len(text) + len(before)
                gold.add((start, start + len(value), this))
                text += before + value + after + draw.choice(["", " ", "\n", "。"])
            rows.append((text, gold))
    rows += [(make(draw), set()) for make in NEGATIVES for _ in range(negatives)]
    draw.shuffle(rows)
    return rows
