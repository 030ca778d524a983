"""What the command line says before it does anything."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from isae_cli.app import app, main
from isae_cli.progress import lines_instead_of_bars
from tests.conftest import complaint, run_python

COMMANDS = [
    "demo",
    "cache",
    "train",
    "report",
    "pairwise",
    "audit",
    "consensus",
    "recode",
    "bench",
    "upload",
]
ISAE = [sys.executable, "-c", "from isae_cli.app import main; main()"]


def output(*arguments, **env):
    result = subprocess.run(
        [*ISAE, *arguments], capture_output=True, text=True, check=True, env={**env}
    )
    return result.stdout


def test_help_takes_less_than_a_second_and_loads_no_torch():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        text = output("--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    order = [text.index(f"│ {command} ") for command in COMMANDS]
    assert order == sorted(order)
    loaded = run_python("import sys, isae_cli.app; print(*sys.modules)").split()
    assert not {"torch", "sae_lens", "sae_lens_isae", "tqdm"} & set(loaded)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_fits_80_columns(command, flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, flag])
    assert stop.value.code == 0
    text = capsys.readouterr().out.partition("The flags of SAELens")[0]
    assert max(map(len, text.splitlines())) <= 80
    # an example is a command that can be copied as it stands
    examples = re.findall(r"^ +isae (.*(?:\\ *\n.*)*)", text, re.MULTILINE)
    assert examples or command == "demo"
    for example in examples:
        assert example.split()[0] == command


def test_choices_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit):
        main(["bench", "-h"])
    text = capsys.readouterr().out
    assert "auto|hub|offline" in text
    assert "core|sparse_probing|scr|tpp|sae_probes|ce_bench" in text


def test_own_fields_come_before_those_of_sae_lens(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    groups = ["--seeds", "Recipe", "--arip_weight", "Multistep encoder", "--step_matrix full|tied"]
    groups += ["Loss terms", "--wsae_alpha", "The flags of SAELens", "--training_tokens"]
    places = [text.index(group) for group in groups]
    assert places == sorted(places)
    # with a description each
    assert re.search(r"--fused_adam \(default: True\)\n +On a CUDA device", text)


def test_version():
    text = output("--version")
    assert text == f"isae {version('sae-lens-isae')}, sae-lens {version('sae-lens')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("pairwise", "a", "b", "--tabel", "csv"),
            "no such option: --tabel; did you mean --table?",
        ),
        (("audit", "a", "--quux"), "no such option: --quux; `isae audit --help` lists"),
        (("padwise",), "Did you mean 'pairwise'?"),
        (("train", "--trainin_tokens", "3"), "did you mean --training_tokens?"),
        (("train", "--encoder_stepz", "3"), "did you mean --encoder_steps?"),
        (("recode", "a", "--gd-samples", "many"), "valid integer"),
    ],
)
def test_a_mistyped_flag_is_one_line_with_the_nearest_name(
    arguments, said, tmp_path, monkeypatch, capsys
):
    found = complaint(arguments, tmp_path, monkeypatch, capsys)
    assert said in found
    assert len(found.splitlines()) == 1


BARS = """
import sys, time
sys.argv = ["isae", *{arguments}]
from isae_cli.app import app
import typer
@app.command()
def work():
    from tqdm.auto import tqdm
    from sae_lens_isae.progress import progress_bar
    for bar in (tqdm, progress_bar):
        for i in bar(range(400), desc="Training SAE", unit="token"):
            time.sleep(0.008)
app(prog_name="isae")
"""


@pytest.mark.slow
def test_without_a_terminal_a_bar_is_a_line_per_tenth():
    result = subprocess.run(
        [sys.executable, "-c", BARS.format(arguments=["work"])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = result.stderr.splitlines()
    assert 4 <= len(lines) <= 20
    assert "\r" not in result.stderr
    assert re.match(r"Training SAE: \d+%, \d+ of 400 tokens, \d\d:\d\d$", lines[0])


@pytest.mark.slow
def test_quiet_has_no_bars():
    result = subprocess.run(
        [sys.executable, "-c", BARS.format(arguments=["--quiet", "work"])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""


def test_bars_of_whoever_imported_them_before_are_changed_too():
    """As where the package is imported before its command line."""
    code = """
import sys
from tqdm.auto import tqdm
from isae_cli import progress
progress._LEAST_SECONDS = 0
progress.{how}()
list(tqdm(range(10), desc="Work", file=sys.stdout, mininterval=0))
"""
    assert run_python(code.format(how="no_bars")) == ""
    lines = run_python(code.format(how="lines_instead_of_bars"))
    assert "\r" not in lines
    assert re.match(r"Work: 10%, 1 of 10 samples, \d\d:\d\d\n", lines)


def test_every_command_is_registered_once():
    names = [command.callback.__name__ for command in app.registered_commands]
    assert names == COMMANDS
    assert callable(lines_instead_of_bars)


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "sae_lens_isae", "--version"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).startswith("isae ")
