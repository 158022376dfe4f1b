"""Short representations, for a prompt and for a notebook."""

from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from environments import Counting, random_batch, small_agent

from klrl.agents import (
    NPG,
    PPO,
    TRPO,
    DistillationConfig,
    DPOConfig,
    NPGConfig,
    PPOConfig,
    PreferencesConfig,
    TRPOConfig,
)
from klrl.experience import Episode
from klrl.kl import Estimate, StateEstimate
from klrl.policy import Bernoulli, Beta, Categorical, DiagGaussian, FullGaussian, GaussianMixture, MultiCategorical
from klrl.run import History
from klrl.shown import array, table
from klrl.trust_region import Change, Clip

every_config = pytest.mark.parametrize(
    "config_class", [PPOConfig, TRPOConfig, NPGConfig, DistillationConfig, DPOConfig, PreferencesConfig]
)


class Cells(HTMLParser):
    """The rows of a page's only table."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(256, 8), "float32[256, 8]"),
        (np.zeros((3, 4), np.int64), "int64[3, 4]"),
        (torch.tensor([[0.5], [1.0 / 3.0]]), "[[0.5], [0.3333]]"),
        (torch.tensor([True, False]), "[True, False]"),
        (np.zeros((0, 4), np.float32), "float32[0, 4]"),
        (torch.tensor(2), "2"),
        (torch.zeros(256, device="meta"), "float32[256] on meta"),
    ],
)
def test_an_array_is_its_type_and_shape_or_its_few_numbers(x, expected):
    assert array(x) == expected


@every_config
def test_a_config_shows_what_is_not_its_default(config_class):
    assert repr(config_class()) == f"{config_class.__name__}()"
    changed = config_class(n_envs=3) if config_class is PreferencesConfig else config_class(batch_size=3)
    assert eval(repr(changed), {config_class.__name__: config_class}) == changed
    assert len(repr(changed)) < 40


def test_a_config_shows_settings_as_one_would_write_them():
    config = PPOConfig(actor_hidden_sizes=(8,), trust_region=Clip(0.1), n_steps=64)
    assert repr(config) == "PPOConfig(trust_region=Clip(clip_range=0.1), n_steps=64, actor_hidden_sizes=(8,))"


RECORDS = [
    (Categorical(torch.zeros(256, 8, 2)), "Categorical(logits=float32[256, 8, 2])"),
    (MultiCategorical(np.zeros((9, 5)), (2, 3)), "MultiCategorical(logits=float64[9, 5], nvec=(2, 3))"),
    (Bernoulli(torch.tensor([0.25, -1.0])), "Bernoulli(logits=[0.25, -1])"),
    (DiagGaussian(torch.zeros(1), torch.zeros(1)), "DiagGaussian(mean=[0], log_std=[0])"),
    (FullGaussian(torch.zeros(9, 2), torch.eye(2).expand(9, 2, 2)), "FullGaussian(mean=float32[9, 2], scale_tril="),
    (Beta(torch.ones(9, 2), torch.ones(9, 2)), "Beta(alpha=float32[9, 2], beta=float32[9, 2])"),
    (GaussianMixture(torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 4)), "GaussianMixture(logits=[0, 0, 0], mean="),
    (
        Change(*2 * [Categorical(torch.zeros(9, 2))], *3 * [torch.zeros(9)]),
        "Change(old=Categorical(logits=float32[9, 2])",
    ),
    (Estimate(0.14384103622589045, 0.04931, 2), "Estimate(0.143841 ± 0.049, n=2)"),
    (StateEstimate(torch.zeros(10), torch.zeros(10), 7), "StateEstimate(float32[10] ± float32[10], n=7)"),
    (Episode(9, 2.0, 3, 0), "Episode(total_timesteps=9, episode_return=2.0, length=3, env_index=0, info={})"),
]


@pytest.mark.parametrize(("record", "begin"), RECORDS, ids=lambda x: type(x).__name__ if not isinstance(x, str) else "")
def test_a_record_is_one_short_line(record, begin):
    assert repr(record).startswith(begin)
    assert len(repr(record)) < 200


@pytest.mark.parametrize("agent_class", [PPO, TRPO, NPG])
def test_an_agent_says_what_it_is_and_how_far(agent_class):
    agent = small_agent(agent_class, Counting)
    name = agent_class.__name__
    assert repr(agent_class.__new__(agent_class)) == f"<{name}, not initialised>"
    assert repr(agent) == f"<{name} seed=0, trust_region={agent.region}: 0 steps, 0 updates>"
    agent.learn(64)
    assert repr(agent).endswith(f"{agent.num_timesteps:,} steps, {agent.n_updates} updates, drift/kl={kl(agent):.4g}>")
    cells = dict(Cells(agent._repr_html_()).rows)
    assert cells["settings"] == repr(agent.config)
    assert cells["KL(old||new) of the last update, mean"] == f"{kl(agent):.4g} nats"
    assert cells["environment"] == "none with an id"


def kl(agent):
    return agent.history[-1]["drift/kl"]


def test_an_agent_names_its_environment():
    agent = PPO("CartPole-v1", PPOConfig(n_steps=8))
    assert repr(agent).startswith("<PPO CartPole-v1, seed=0, ")
    assert dict(Cells(agent._repr_html_()).rows)["environment"] == "CartPole-v1"


def test_a_batch_is_one_line_and_a_table():
    agent = small_agent(PPO, Counting)
    batch = random_batch(agent)
    assert len(repr(batch)) < 250
    assert repr(batch).startswith("Batch(32 steps x ")
    assert repr(batch).endswith("behaviour=Categorical, no episode ended)") or "Gaussian" in repr(batch)
    assert dict(Cells(batch._repr_html_()).rows)["valid steps"] == str(batch.n_samples)


def test_an_encoding_says_from_what_to_what():
    assert repr(PPO("FrozenLake-v1", PPOConfig(n_steps=8)).encoding) == "Encoding(Discrete(16) -> float32[16])"


def test_a_history_shows_its_newest_updates():
    history = History({"time/total_timesteps": 1000.0 * i, "drift/kl": 0.25 / 2**i} for i in range(1, 13))
    header, *rows = Cells(history._repr_html_()).rows
    assert header == ["time/total_timesteps", "drift/kl"]
    assert rows[0] == ["3,000", "0.03125"]
    assert len(rows) == 10
    assert History()._repr_html_() == "<table><caption>history: 0 updates</caption></table>"


def test_nothing_in_a_table_is_read_as_html():
    assert Cells(table("<b>", [("<script>", "a & b")])).rows == [["<script>", "a & b"]]
    assert "<script>" not in table("<b>", [("<script>", "a & b")])
