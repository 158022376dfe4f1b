"""Saved state on disk: written whole or not at all, read without pickle, pruned."""

import json

import pytest
import torch

from klrl.run import checkpoint

TENSORS = {
    "float": torch.randn(3, 4),
    "double": torch.tensor(1 / 3, dtype=torch.float64),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "strided": torch.arange(6.0).view(2, 3).T,
    "empty": torch.zeros(0, 2),
    "gradient": torch.ones(2, requires_grad=True),
}
STATE = {"agent": "PPO", "nested": {"list": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path):
    return checkpoint.write(tmp_path / "saved", TENSORS, STATE)


def saved_run(path, scores):
    """A run with one checkpoint every 100 steps; their names."""
    for i, score in enumerate(scores):
        checkpoint.write(checkpoint.step_directory(path, 100 * i), {}, {"ep_rew_mean": score})
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def test_what_is_written_is_read_back_to_the_bit(saved):
    tensors, state = checkpoint.read(saved)
    assert {k: state[k] for k in STATE} == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert tensors[name].dtype == x.dtype
        assert torch.equal(tensors[name], x.detach())


def test_a_saved_agent_is_one_file_of_json_and_one_of_safetensors(saved):
    assert {p.name for p in saved.iterdir()} == {"agent.json", "tensors.safetensors"}
    assert json.loads((saved / "agent.json").read_text())["agent"] == "PPO"
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_writing_again_replaces_what_was_there(saved):
    checkpoint.write(saved, {"other": torch.ones(1)}, {"agent": "TRPO"})
    tensors, state = checkpoint.read(saved)
    assert (list(tensors), state["agent"]) == (["other"], "TRPO")
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_parents_are_made_and_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        assert checkpoint.read(checkpoint.write(path, {}, STATE))[1]["agent"] == "PPO"


@pytest.mark.parametrize("name", ["directory", "file"])
def test_what_is_not_a_saved_agent_is_left_alone(tmp_path, name):
    path = tmp_path / name
    precious = path / "thesis.tex" if name == "directory" else path
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(FileExistsError, match=f"{name} exists and is not a saved agent; allowed: a new path"):
        checkpoint.write(path, TENSORS, STATE)
    assert precious.read_text() == "years of work"


def test_a_write_that_fails_leaves_the_old_agent_and_nothing_else(saved):
    with pytest.raises(TypeError):
        checkpoint.write(saved, TENSORS, {"agent": object()})
    assert checkpoint.read(saved)[1]["agent"] == "PPO"
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_reading_where_nothing_was_saved_says_so(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"no saved agent there; allowed: a saved agent or a run directory"):
        checkpoint.read(tmp_path / path)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("agent.json", cut),
        ("agent.json", lambda file: file.write_bytes(b"\xff\xfe\x00")),
        ("agent.json", lambda file: file.write_text("")),
        ("tensors.safetensors", cut),
        ("tensors.safetensors", lambda file: file.write_bytes(b"")),
        ("tensors.safetensors", lambda file: file.unlink()),
    ],
    ids=["json cut", "json not text", "json empty", "tensors cut", "tensors empty", "tensors gone"],
)
def test_a_damaged_agent_is_refused_with_its_path(saved, file, damage):
    damage(saved / file)
    with pytest.raises(ValueError, match="saved is damaged: "):
        checkpoint.read(saved)


@pytest.mark.parametrize("format", [2, None])
def test_another_format_is_refused(saved, format):
    state = json.loads((saved / "agent.json").read_text())
    (saved / "agent.json").write_text(json.dumps(state | {"format": format}))
    with pytest.raises(ValueError, match=f"has format {format}; this klrl reads format 1"):
        checkpoint.read(saved)


def test_a_run_is_read_at_its_newest_complete_checkpoint(tmp_path):
    saved_run(tmp_path, [1.0, 2.0, 0.0])
    checkpoint.step_directory(tmp_path, 10**7).mkdir()
    (tmp_path / "checkpoints" / ".000000000900.0a1b2c3d").mkdir()
    assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == 0.0


def test_the_order_of_checkpoints_is_that_of_their_steps_not_of_their_digits(tmp_path):
    for steps in (999, 1_000, 12_345_678_901):
        checkpoint.write(checkpoint.step_directory(tmp_path, steps), {}, {"ep_rew_mean": steps})
        assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == steps


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    saved_run(tmp_path, [1.0, 2.0, 3.0])
    (checkpoint.step_directory(tmp_path, 200) / "tensors.safetensors").write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match=r"000000000200 is damaged.*going back to .*000000000100"):
        assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == 2.0


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([1.0, 2.0, 3.0, 4.0], [2, 3]),
        ([1.0, 9.0, 3.0, 4.0], [1, 2, 3]),
        ([9.0, 9.0, 3.0, 4.0], [1, 2, 3]),
        ([None, None, None, None], [2, 3]),
        ([None, -500.0, None, None], [1, 2, 3]),
        ([5.0], [0]),
    ],
    ids=["last is best", "older is best", "a tie keeps the newer", "no scores", "any score beats none", "fewer"],
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path, scores, kept):
    names = saved_run(tmp_path, scores)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [names[i] for i in kept]
