"""tuneloop serve: a run, a version, a model, an export or other servers behind OpenAI's API."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:
    from tuneloop.recipe.serve import ServePart


def serve(
    ref: Annotated[
        str, typer.Argument(help="A run, a version ('name:v3', 'name:production'), a model, or an export.")
    ] = "",
    engine: Annotated[
        str | None, typer.Option(help="What computes: torch, gguf (llama.cpp), proxy (other servers) or vllm.")
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="A server to pass requests on to, e.g. http://127.0.0.1:8080/v1; repeatable."),
    ] = None,
    upstream_key_file: Annotated[Path | None, typer.Option(help="A file with the key for the upstreams.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key that clients must send.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe whose section serve is taken; it is read again at SIGHUP.")
    ] = None,
    guard: Annotated[
        str | None, typer.Option(help="The guard's policy: off, default, or a YAML file; see docs/en/serve.md.")
    ] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")] = Path(),
) -> None:
    """Serve OpenAI's API until Ctrl-C.

    Examples: tuneloop serve runs/demo-1 --port 8000 | tuneloop serve --engine proxy --upstream http://127.0.0.1:8080/v1
    """

    def read() -> ServePart:
        one = _settings(ref, engine, upstream, upstream_key_file, workspace, config)
        if guard is not None:
            one = one.model_copy(update={"safety": one.safety.model_copy(update={"policy": guard})})
        return one.model_copy(update={"key_file": str(api_key_file)}) if api_key_file else one

    settings = read()
    from tuneloop.base.errors import ServeError
    from tuneloop.base.language import t
    from tuneloop.cli.show import say
    from tuneloop.improvement.archive import store_place
    from tuneloop.serving.access.access import is_remote
    from tuneloop.serving.access.key_ring import KeyRing
    from tuneloop.serving.application import application
    from tuneloop.serving.http import api, logs
    from tuneloop.serving.settings import open_to_others, read_key

    key_file = Path(settings.key_file) if settings.key_file else None
    key = read_key(key_file) if key_file else None
    if key_file and open_to_others(key_file):
        say(t("note: every user of this machine can read {path}; close it with chmod 600", path=key_file))
    bound = api.listen(host, port)
    try:
        with closing(KeyRing(store_place(workspace))) as ring:
            locked = key is not None or ring.locked
        if not locked and is_remote(bound.getsockname()):
            raise ServeError("TL-SERVE-OPEN", where="--host", host=host or "0.0.0.0")
        if ref:
            say(t("loading {ref} …", ref=ref))
        app = application(ref, workspace=workspace, settings=settings, say=say, reread=read)
        model = _model(settings, app.state.model_name)
        base = f"http://{_reachable(host)}:{bound.getsockname()[1]}"
        typer.echo(t("serving {model} at {base}/v1 (Ctrl-C ends it)", model=model, base=base))
        typer.echo(t("chat page: {url}", url=f"{base}/"))
        typer.echo(_examples(base, model, key_file, locked))
        if settings.log == "json":
            logs.write_json()
        api.run(app, bound)
    except KeyboardInterrupt:
        pass  # while loading
    finally:
        bound.close()
    typer.echo(t("stopped"))


def _settings(
    ref: str,
    engine: str | None,
    upstreams: list[str] | None,
    key_file: Path | None,
    workspace: Path,
    config: Path | None,
) -> ServePart:
    """The settings of the config or the run, and over them those of the command line. A GGUF is served by llama.cpp;
    where upstreams alone are named, they are asked.

    Raises a usage error, and what `versions.require` raises.
    """
    from tuneloop.base.language import listed, t
    from tuneloop.cli import usage
    from tuneloop.recipe.serve import EngineName, ServePart
    from tuneloop.registry import versions
    from tuneloop.serving.llamacpp.gguf_files import is_gguf
    from tuneloop.serving.settings import config_settings, serve_settings

    known = get_args(EngineName)
    written = config_settings(config) if config else None
    if engine is None and written is not None and "engine" in written.model_fields_set:
        engine = written.engine
    if engine is None:
        engine = "gguf" if ref and is_gguf(ref) else "proxy" if upstreams and not ref else None
    if engine not in (None, *known):
        names = listed(list(known))
        raise usage.wrong("tuneloop serve", t("there is no engine {name}; they are {names}", name=engine, names=names))
    if not ref and engine != "proxy":
        raise usage.wrong("tuneloop serve", t("it takes a run, a version, a model or an export"))
    if upstreams and engine not in (None, "proxy"):
        raise usage.wrong("tuneloop serve", t("--upstream is for --engine proxy"))
    if ref and engine in (None, "torch"):
        versions.require(workspace, ref)
    settings = written or (serve_settings(ref, workspace) if ref else ServePart())
    given = {"engine": engine, "upstreams": upstreams, "upstream_key_file": key_file and str(key_file)}
    return settings.model_copy(update={name: word for name, word in given.items() if word})


def _model(settings: ServePart, name: str) -> str:
    """The name of a model to ask for: of a proxy, the first one that an upstream lists."""
    if settings.engine != "proxy":
        return name
    from tuneloop.serving.upstream.proxy_engine import upstream_models

    return next(iter(upstream_models(settings, lambda text: None)), "MODEL")


def _reachable(host: str) -> str:
    """The host as a client on this machine writes it.

    >>> _reachable("0.0.0.0"), _reachable("::1")
    ('127.0.0.1', '[::1]')
    """
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _examples(base: str, model: str, key_file: Path | None, locked: bool = False) -> str:
    """A curl command and a Python program that ask the server something; of a locked server without a key file, with
    a place for a key."""
    from tuneloop.base.language import t

    question = t("Who are you?")
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    bearer = ' -H "Authorization: Bearer KEY"' if locked else ""
    bearer = f' -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})"' if key_file else bearer
    key = f"open({str(key_file)!r}).read().strip()" if key_file else '"KEY"' if locked else '"none"'
    return (
        f"\ncurl {base}/v1/chat/completions -H 'Content-Type: application/json'{bearer} -d {shlex.quote(body)}\n\n"
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{base}/v1", api_key={key})\n'
        f'chat = [{{"role": "user", "content": "{question}"}}]\n'
        f"reply = client.chat.completions.create(model={json.dumps(model, ensure_ascii=False)}, messages=chat)\n"
        "print(reply.choices[0].message.content)\n"
    )
