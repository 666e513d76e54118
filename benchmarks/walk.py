"""How a reader walks through tuneloop who follows a row, the recipe and a question: python -m benchmarks walk [--path]

The demo recipe runs with a tiny model, under sys.setprofile. Of each traveller the path is the list of tuneloop's
functions in the order in which they are first called: each counts once, however often it runs, as a reader reads it
once. The path is told in files, and in rooms: the folders of the package, and the files that lie directly in it.

    a return   a step of the path into a file (or room) that it was in before and has left

So a path that opens each file once, and reads all that it needs there before it goes on, has no return. The way back to
a caller is no step; comprehensions, lambdas, what runs at import and the package's own __init__ do not count.

It is counted twice. `called`: every function that runs meanwhile. `handed`: only those that are handed the traveller
itself, or an object that holds it: the recipe or a section of it; a record, or records; the messages, or the request
with them.

The row travels through `prepare`, the recipe through `read_recipe`, `plan` and `train`, the question through one
request to the API that `serve` gives, after it was loaded. Only `tuneloop.__all__` is used, so commits can be compared.
"""

from __future__ import annotations

import argparse
import importlib
import io
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks import tiny

LINE = "{:<10}{:<8}" + "{:>11}" * 5
STEPS = 3


@dataclass
class Route:
    """The functions that one traveller met, each once: (file, function), the file as "data/reading/rows"."""

    name: str
    is_it: Callable[[Any], bool]
    """Whether a value is the traveller."""
    called: list[tuple[str, str]] = field(default_factory=list)
    handed: list[tuple[str, str]] = field(default_factory=list)
    seen: set[CodeType] = field(default_factory=set)
    met: set[CodeType] = field(default_factory=set)

    def has(self, value: Any) -> bool:
        """Whether a value is the traveller, several of them, or an object that holds it."""
        if isinstance(value, list | tuple):
            return self.is_it(value) or any(map(self.is_it, value[:1]))
        if self.is_it(value) or not type(value).__module__.startswith("tuneloop"):
            return self.is_it(value)
        inside = (getattr(value, one.name, None) for one in fields(value)) if is_dataclass(value) else ()
        return any(map(self.is_it, [*inside, *getattr(value, "__dict__", {}).values()]))


def recipe_test() -> Callable[[Any], bool]:
    """Tells the recipe, or a section of it."""
    import tuneloop

    recipe, _ = tuneloop.make_recipe({"data": "-"})
    kinds = (type(recipe), *(type(section) for _, section in recipe if type(section).__module__.startswith("tuneloop")))
    return lambda value: isinstance(value, kinds)


def is_row(value: Any) -> bool:
    return type(value).__name__ == "Record"


def is_question(value: Any) -> bool:
    """Messages: dicts with a role, or objects with one."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return "role" in value[0] if isinstance(value[0], dict) else hasattr(value[0], "role")


def room(file: str) -> str:
    return file.partition("/")[0]


def visits(places: Sequence[str]) -> list[str]:
    """The places in order, each stay once.

    >>> visits(["a", "a", "b", "a"])
    ['a', 'b', 'a']
    """
    return [place for k, place in enumerate(places) if not k or places[k - 1] != place]


def returns(places: Sequence[str]) -> int:
    """How often the way goes into a place that it was in before and has left.

    >>> returns(["a", "a", "b", "a", "c", "b"])
    2
    """
    return len(visits(places)) - len(set(places))


class Watch:
    """Notes calls of tuneloop's functions in all threads that begin after it."""

    def __init__(self, package: Path) -> None:
        self.package = str(package)
        self.known: dict[CodeType, str] = {}
        self.route: Route | None = None

    def file_of(self, code: CodeType) -> str:
        """The file of a function of tuneloop, "" of any other."""
        if code not in self.known:
            inside = code.co_filename.startswith(self.package) and not code.co_name.startswith("<")
            file = Path(code.co_filename)
            name = file.relative_to(self.package).with_suffix("").as_posix() if inside else ""
            self.known[code] = "" if name == "__init__" else name
        return self.known[code]

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code, route = frame.f_code, self.route
        if event != "call" or route is None or code in route.met or not (file := self.file_of(code)):
            return
        if code not in route.seen:
            route.seen.add(code)
            route.called.append((file, code.co_qualname))
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(route.has(frame.f_locals.get(name)) for name in given):
            route.met.add(code)
            route.handed.append((file, code.co_qualname))

    @contextmanager
    def follow(self, route: Route) -> Iterator[None]:
        self.route = route
        try:
            yield
        finally:
            self.route = None


def walk() -> list[Route]:
    """The paths of a row, the recipe and a question."""
    import tuneloop

    package = Path(str(tuneloop.__file__)).parent
    for module in pkgutil.walk_packages([str(package)], "tuneloop."):
        if not module.name.endswith("__main__"):  # what runs at import is no step of a path
            importlib.import_module(module.name)
    watch = Watch(package)
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        with tempfile.TemporaryDirectory(prefix="tuneloop-walk-") as folder, redirect_stderr(io.StringIO()):
            return travels(watch, package, Path(folder))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def travels(watch: Watch, package: Path, folder: Path) -> list[Route]:
    import tuneloop

    model = tiny.model(folder / "model", "llama", max_position_embeddings=2048)
    row, settings, question = Route("row", is_row), Route("recipe", recipe_test()), Route("question", is_question)
    with watch.follow(settings):
        recipe, _ = tuneloop.read_recipe(package / "recipes" / "demo.yaml")
    recipe = recipe.model_copy(update={
        "model": recipe.model.model_copy(update={"name": str(model)}),
        "train": recipe.train.model_copy(update={"max_steps": STEPS}),
    })  # fmt: skip
    with watch.follow(row):
        dataset = tuneloop.prepare(recipe, workspace=folder)
    with watch.follow(settings):
        foreseen, _ = tuneloop.plan(recipe, dataset, workspace=folder)
        run = tuneloop.train(recipe, dataset, workspace=folder, foreseen=foreseen)
    ask(watch, question, run.path, folder)
    return [row, settings, question]


def ask(watch: Watch, question: Route, run: Path, folder: Path) -> None:
    """One question to the API of a run; it is loaded before."""
    from fastapi.testclient import TestClient

    import tuneloop

    body = {"model": run.name, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}
    with TestClient(tuneloop.serve(run, workspace=folder, api_key="k")) as client, watch.follow(question):
        reply = client.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer k"})
    if reply.status_code != 200:
        raise SystemExit(reply.text)


def show(routes: Sequence[Route], whole: bool) -> None:
    print(LINE.format("", "", "functions", "files", "returns", "rooms", "returns"))
    for route in routes:
        for how, functions in (("called", route.called), ("handed", route.handed)):
            files = [file for file, _ in functions]
            rooms = [room(file) for file in files]
            print(LINE.format(route.name, how, len(files), len(set(files)), returns(files), len(set(rooms)),
                              returns(rooms)))  # fmt: skip
    for route in routes:
        print(f"\n{route.name}: {' '.join(dict.fromkeys(room(file) for file, _ in route.called))}")
        for line in told(route) if whole else ():
            print(line)


def told(route: Route) -> Iterator[str]:
    """The whole path: files, where it comes back to one, functions, and a * at those that are handed the traveller."""
    before: list[str] = []
    for file, function in route.called:
        if not before or before[-1] != file:
            yield f"  {'back to ' if file in before else ''}{file}"
        yield f"    {'*' if (file, function) in route.handed else ' '} {function}"
        before.append(file)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks walk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", action="store_true", help="print every function of the way")
    show(walk(), parser.parse_args(arguments).path)
