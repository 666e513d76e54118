"""An upstream that costs next to nothing: OpenAI's API with an answer that is written down, streamed at once.

    python -m benchmarks.mock_upstream PORT [PIECES] [SECONDS between two]

It knows HTTP/1.1 as far as our own client speaks it.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "mock"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n"


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )


def chunked(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def whole(content: bytes, kind: bytes = b"application/json") -> bytes:
    return HEAD % (kind, b"Content-Length: %d\r\n" % len(content)) + content


class Mock:
    """`pieces` of an answer, `seconds` between two of them."""

    def __init__(self, pieces: int, seconds: float) -> None:
        self.seconds = seconds
        self.begun = HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked\r\n")
        self.events = [event({"content": f"word{k} "}) for k in range(pieces)]
        usage = {"prompt_tokens": 12, "completion_tokens": pieces, "total_tokens": 12 + pieces}
        last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        self.ended = chunked(event({}, "stop") + last) + b"0\r\n\r\n"
        self.models = whole(json.dumps({"data": [{"id": MODEL, "max_model_len": 8192}]}).encode())
        message = {"role": "assistant", "content": "".join(f"word{k} " for k in range(pieces))}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer = whole(json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = next((int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0)
                body = await reader.readexactly(length)
                if head.startswith(b"get"):
                    writer.write(self.models)
                elif b'"stream":true' not in body.replace(b" ", b""):
                    writer.write(self.answer)
                elif self.seconds:
                    writer.write(self.begun)
                    for one in self.events:
                        writer.write(chunked(one))
                        await asyncio.sleep(self.seconds)
                    writer.write(self.ended)
                else:
                    writer.write(self.begun + chunked(b"".join(self.events)) + self.ended)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def main() -> None:
    port, pieces, seconds = (*sys.argv[1:4], *("0", "16", "0")[len(sys.argv) - 1 :])
    server = await asyncio.start_server(Mock(int(pieces), float(seconds)).serve, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
