"""Chinese text cut into words, by jieba's own dictionary."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from importlib import import_module
from typing import Any


@cache
def segmenter() -> Any:
    """A jieba tokenizer, read from its own dictionary; the first call takes a second.

    Its usual start is noisy, and it loads a cache file by a fixed name in the shared temporary folder, where anybody
    can lay one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jieba = import_module("jieba")
    jieba.setLogLevel(logging.ERROR)
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
