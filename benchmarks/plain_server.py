"""A model behind FastAPI as the guides write it: one endpoint that calls `generate`."""

from __future__ import annotations

import argparse
from typing import Any


def application(folder: str) -> Any:
    import torch
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        new = out[0][inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        return {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"completion_tokens": len(new)},
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    import uvicorn

    uvicorn.run(application(given.folder), port=given.port, log_level="error")


if __name__ == "__main__":
    main()
