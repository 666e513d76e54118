"""tuneloop serve: a run, a version or a model behind OpenAI's chat API."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer


def serve(
    ref: Annotated[str, typer.Argument(help="A run, a version ('name:v3', 'name:production'), or a model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key that clients must send.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")] = Path(),
) -> None:
    """Serve OpenAI's chat API until Ctrl-C.

    Example: tuneloop serve runs/demo-1 --port 8000
    """
    from tuneloop.registry import versions

    versions.require(workspace, ref)
    from tuneloop.base.language import t
    from tuneloop.cli.show import say
    from tuneloop.serving import api
    from tuneloop.serving.settings import open_to_others, read_key, serve_settings

    settings = serve_settings(ref, workspace)
    key_file = api_key_file or (Path(settings.key_file) if settings.key_file else None)
    key = read_key(key_file) if key_file else None
    if key_file and open_to_others(key_file):
        say(t("note: every user of this machine can read {path}; close it with chmod 600", path=key_file))
    bound = api.listen(host, port)
    try:
        say(t("loading {ref} …", ref=ref))
        from tuneloop import pipeline  # with torch: what was refused above has not waited for it

        app = pipeline.serve(ref, workspace=workspace, api_key=key)
        base = f"http://{_reachable(host)}:{bound.getsockname()[1]}"
        typer.echo(t("serving {model} at {base}/v1 (Ctrl-C ends it)", model=app.state.model_name, base=base))
        if key is None and not _local(host):
            say(t("warning: no --api-key-file, and {host} can be reached by others", host=host))
        typer.echo(_examples(base, app.state.model_name, key_file))
        api.run(app, bound)
    except KeyboardInterrupt:
        pass  # while loading
    finally:
        bound.close()
    typer.echo(t("stopped"))


def _local(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def _reachable(host: str) -> str:
    """The host as a client on this machine writes it.

    >>> _reachable("0.0.0.0"), _reachable("::1")
    ('127.0.0.1', '[::1]')
    """
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _examples(base: str, model: str, key_file: Path | None) -> str:
    """A curl command and a Python program that ask the server something."""
    from tuneloop.base.language import t

    question = t("Who are you?")
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    bearer = f' -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})"' if key_file else ""
    key = f"open({str(key_file)!r}).read().strip()" if key_file else '"none"'
    return (
        f"\ncurl {base}/v1/chat/completions -H 'Content-Type: application/json'{bearer} -d {shlex.quote(body)}\n\n"
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{base}/v1", api_key={key})\n'
        f'chat = [{{"role": "user", "content": "{question}"}}]\n'
        f"reply = client.chat.completions.create(model={json.dumps(model, ensure_ascii=False)}, messages=chat)\n"
        "print(reply.choices[0].message.content)\n"
    )
