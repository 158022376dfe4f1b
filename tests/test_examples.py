"""The programs of the page on sequences run, and what the page says of their measurements holds."""

import json

import pytest
import torch
from examples import measurements, rlhf
from examples.characters import END, LONGEST, sample, sentences, text, until_end
from sitegen.results import read


def test_the_grammar_writes_sentences_that_end():
    tokens = sentences(200, torch.Generator().manual_seed(0))
    assert ((tokens == END).any(-1)).all()
    assert all(text(row).startswith("the ") and len(text(row)) < LONGEST for row in tokens)
    assert until_end(tokens).sum(-1).tolist() == [len(text(row)) + 1 for row in tokens]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What the program writes after two updates of each kind."""
    output, threads = tmp_path_factory.mktemp("rlhf") / "rlhf.json", torch.get_num_threads()
    settings = ["--pretraining", "5", "--updates", "2", "--batch", "8", "--judged", "16"]
    rlhf.main(["--output", str(output), *settings])
    torch.set_num_threads(threads)
    return json.loads(output.read_text())


@pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")
def test_the_model_is_tuned_with_the_kl_in_every_place(small):
    assert set(small) == set(read("rlhf.json"))
    for place in rlhf.PLACES:
        first, second = small[place]["history"]
        assert first["exact"] == [0.0, 0.0]
        assert second["exact"][0] > 0.0
        assert set(small[place]["end"]) == set(read("rlhf.json")[place]["end"])


def test_what_is_sampled_ends_once():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = rlhf.Transformer()
    tokens = sample(model, 16, torch.Generator().manual_seed(0))
    ended = (tokens == END).cumsum(-1) > 0
    assert (tokens[ended] == END).all()
    assert tokens.shape[1] <= LONGEST


def test_a_model_knows_nothing_of_what_comes_after():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = rlhf.Transformer()
    tokens = sentences(2, torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 10:] = 5
    torch.testing.assert_close(model(tokens)[:, :11], model(changed)[:, :11])
    assert not torch.allclose(model(tokens)[:, 11:], model(changed)[:, 11:])


def test_the_page_says_what_was_measured():
    found = read("sequences.json")
    estimators, gradients = found["estimators"], found["gradients"]
    assert found["repeats"] == 2000
    for name in ("exact", "k1", "k3"):
        assert estimators[name]["mean"] == pytest.approx(found["kl"], rel=1e-9)
    assert all(0.93 <= estimators[x][f"coverage_{n}"] <= 0.97 for x in ("exact", "k1") for n in (64, 256))
    assert estimators["exact"]["deviation"] < min(estimators[x]["deviation"] for x in ("k1", "k3"))
    both = {"sequence_kl_loss", "k1 in the reward", "k2 of the sequence"}
    assert {name for name, x in gradients.items() if x["error"] < 1e-9} == both
    assert found["memory"]["loss and gradient"] < 1.1


def test_the_measurements_are_made_anew():
    found, recorded = measurements.gradients(), read("sequences.json")["gradients"]
    for name, x in recorded.items():
        assert found[name] == pytest.approx(x, abs=2e-3)
    assert measurements.memory(2, 4, 100, 2).keys() == read("sequences.json")["memory"].keys()
