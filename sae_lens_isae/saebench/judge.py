"""A language model that explains latents and judges explanations.

It answers at any endpoint with OpenAI's chat interface (a cloud, vLLM, llama.cpp, Ollama,
`transformers serve`), or runs here.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_isae.errors import InputError, MissingInputError, explained, reason
from sae_lens_isae.files import fingerprint
from sae_lens_isae.inputs.gguf import GGUF_PREFIX, convert_gguf
from sae_lens_isae.saebench.installed import module

Messages = Sequence[dict[str, str]]
KEY_VARIABLE = "OPENAI_API_KEY"
_TRIES = 6
_SECONDS = 120.0
_NONE = "None"
_GO_ON = "what was answered is kept: the same command with --resume goes on"


class Judge(Protocol):
    """A chat model."""

    @property
    def name(self) -> str:
        """What it is, without secrets."""
        ...

    def answer(self, messages: Messages, max_tokens: int, *, picks: bool = False) -> str:
        """What it says to a conversation.

        Args:
            messages: The conversation.
            max_tokens: Of the answer.
            picks: The answer should be numbers with commas between them, or None: a judge that can
                be held to that is.

        Raises:
            InputError: It does not answer; the message says what to do.
        """
        ...


def open_judge(name: str, model: str | None = None, device: str = "cpu") -> Judge:
    """A judge by the name that a user types.

    Args:
        name: The URL of an endpoint (`http://localhost:8000/v1`), `gguf:...`, or a chat model on
            the hub or in a folder, which runs here.
        model: Which model of an endpoint; by default the only one that it lists.
        device: Of a model that runs here.

    Raises:
        InputError: The endpoint does not answer, or the model is no chat model.
        MissingInputError: There is no such model, or the package openai is missing.
    """
    if name.startswith(("http://", "https://")):
        return Endpoint(name, model)
    return LocalJudge(name, device)


class Endpoint:
    """A model behind OpenAI's chat interface. The key is read from `$OPENAI_API_KEY`; what waits,
    fails or is too much is tried again, later each time."""

    def __init__(self, url: str, model: str | None) -> None:
        openai: Any = module("openai")
        self._openai = openai
        self._url = url
        # endpoints of one's own take any key, the client none
        key = os.environ.get(KEY_VARIABLE) or "none"
        self._client = openai.OpenAI(
            base_url=url, api_key=key, max_retries=_TRIES, timeout=_SECONDS
        )
        self._model = model or self._only_model()

    @property
    def name(self) -> str:
        return f"{self._model} at {self._url}"

    def answer(self, messages: Messages, max_tokens: int, *, picks: bool = False) -> str:
        del picks  # endpoints have no common way to ask for a form
        try:
            found: Any = self._client.chat.completions.create(
                model=self._model,
                messages=list(messages),  # pyright: ignore[reportArgumentType]
                max_tokens=max_tokens,
                temperature=0.0,
            )
            text = found.choices[0].message.content
        except Exception as error:
            raise self._explained(error) from error
        if not isinstance(text, str):
            raise InputError(f"the judge {self.name} returned no text; {_GO_ON}")
        return text.strip()

    def _only_model(self) -> str:
        try:
            models = [model.id for model in self._client.models.list()]
        except Exception as error:
            raise self._explained(error) from error
        if len(models) != 1:
            raise InputError(
                f"{self._url} has {len(models)} models ({', '.join(models[:5])}); name one "
                "(--judge-model)"
            )
        return models[0]

    def _explained(self, error: Exception) -> InputError:
        openai, said = self._openai, reason(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return InputError(
                f"{self._url} refuses the key in ${KEY_VARIABLE} ({said}); set the right one"
            )
        if isinstance(error, openai.NotFoundError):
            return InputError(
                f"{self._url} has no such model or no chat interface ({said}); name a model "
                "(--judge-model), and the URL up to /v1"
            )
        if isinstance(error, openai.RateLimitError):
            return InputError(f"{self._url} had too many requests {_TRIES + 1} times; {_GO_ON}")
        if isinstance(error, openai.APITimeoutError):
            return InputError(f"{self._url} did not answer within {_SECONDS:.0f} s; {_GO_ON}")
        if isinstance(error, openai.APIConnectionError):
            return InputError(f"nothing answers at {self._url} ({said}); is it running? {_GO_ON}")
        return InputError(f"{self._url} failed: {said}; {_GO_ON}")


class LocalJudge:
    """A chat model that runs here, one conversation at a time, with the likeliest words.

    Picks are decoded among what can be read: a model too small to keep to a form would say nothing
    that counts.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        path = name
        if name.startswith(GGUF_PREFIX):
            path = str(convert_gguf(name.removeprefix(GGUF_PREFIX)))
        advice = "name a chat model on the hub or in a folder, gguf:..., or an endpoint's URL"
        try:
            with explained(f"the judge {name}", "cannot be loaded", advice):
                self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
                model: Any = AutoModelForCausalLM.from_pretrained(path)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise MissingInputError(str(error)) from error.__cause__
            raise
        if self._tokenizer.chat_template is None:
            raise InputError(f"the judge {name} has no chat template: it is no chat model")
        self._model = model.to(device).eval()
        self._lock = threading.Lock()
        words: dict[str, int] = self._tokenizer.get_vocab()
        self._none = [words[_NONE]] if _NONE in words else []
        self._numbers = [n for word, n in words.items() if word.isascii() and word.isdecimal()]
        self._commas = [words[","]] if "," in words else []
        self._end = [self._tokenizer.eos_token_id]

    def _readable(self, said: str) -> list[int]:
        """The tokens with which an answer in picks can go on."""
        if not said:
            return self._numbers + self._none
        if said.endswith(","):
            return self._numbers
        return self._end if said == _NONE else self._numbers + self._commas + self._end

    @torch.no_grad()
    def answer(self, messages: Messages, max_tokens: int, *, picks: bool = False) -> str:
        with self._lock:
            tokens = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
            n = tokens["input_ids"].shape[1]

            def said(ids: torch.Tensor) -> str:
                return self._tokenizer.decode(ids[n:], skip_special_tokens=True)

            def readable(_: int, ids: torch.Tensor) -> list[int]:
                return self._readable(said(ids))

            found = self._model.generate(
                **tokens,
                max_new_tokens=max_tokens,
                do_sample=False,
                prefix_allowed_tokens_fn=readable if picks and self._numbers else None,
            )
            return said(found[0]).strip()


class KeptAnswers:
    """A judge whose answers are written to a file, and not asked for again.

    Args:
        file: A line of JSON for each question: messages, answer, judge.
    """

    def __init__(self, judge: Judge, file: Path) -> None:
        self._judge = judge
        self._file = file
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        if file.exists():
            advice = "remove it, and the judge is asked again"
            with explained(file, "is damaged", advice):
                for line in file.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    self._answers[row["question"]] = row["answer"]

    @property
    def name(self) -> str:
        """Of the judge."""
        return self._judge.name

    def answer(self, messages: Messages, max_tokens: int, *, picks: bool = False) -> str:
        """See `Judge`."""
        question = fingerprint([], [self.name, list(messages), max_tokens])
        if question in self._answers:
            return self._answers[question]
        answer = self._judge.answer(messages, max_tokens, picks=picks)
        row = {
            "question": question,
            "judge": self.name,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "answer": answer,
        }
        with self._lock:
            self._answers[question] = answer
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                # one write for a line: a run that is cut off leaves whole ones
                file.write(json.dumps(row) + "\n")
        return answer
