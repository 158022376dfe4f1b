"""Models of Stable-Baselines3, trained once for all of these tests."""

import contextlib

import pytest
import torch
from sb3_models import save_model

from klrl.integrations.sb3_reader import LEAST_TORCH, Reader


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function from a name to that model, saved."""
    folder, known = tmp_path_factory.mktemp("sb3"), {}

    def get(name):
        if name not in known:
            known[name] = save_model(name, folder)
        return known[name]

    return get


@pytest.fixture(scope="session")
def reader():
    """The process that reads, one for all tests."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
        pytest.skip("an older torch reads no other library's files")
    with Reader() as reader:
        yield reader


@pytest.fixture
def one_reader(reader, monkeypatch):
    """Let the commands read by that process: a new one imports torch."""
    for module in ("klrl.integrations.sb3_policy", "klrl.scripts.cli.audited"):
        monkeypatch.setattr(f"{module}.Reader", lambda: contextlib.nullcontext(reader))
