"""Arguments as other libraries have them: one line that says how it is done here."""

import pytest

from klrl.agents import NPG, PPO, TRPO, PPOConfig, TRPOConfig


class MlpPolicy:
    """Stands for a class of Stable-Baselines3."""

    __module__ = "stable_baselines3.ppo.policies"


WRONG = [
    (
        lambda: PPO("CartPole-v1", n_steps=128),
        "n_steps = 128 is a setting of PPOConfig; allowed: PPO('CartPole-v1', config=PPOConfig(n_steps=128))",
    ),
    (
        lambda: TRPO(env="CartPole-v1", gamma=0.9, n_steps=128, verbose=1),
        "gamma = 0.9 is a setting of TRPOConfig; allowed: TRPO(env, config=TRPOConfig(gamma=0.9, n_steps=128))",
    ),
    (
        lambda: PPO("MlpPolicy", "CartPole-v1"),
        "env = MlpPolicy: the environment is the first argument, and no policy is named; allowed: PPO('CartPole-v1')",
    ),
    (
        lambda: NPG("MlpPolicy", "CartPole-v1", n_steps=128, verbose=1),
        "env = MlpPolicy: the environment is the first argument, and no policy is named; "
        "allowed: NPG('CartPole-v1', config=NPGConfig(n_steps=128))",
    ),
    (
        lambda: PPO(MlpPolicy, object()),
        "env = MlpPolicy: the environment is the first argument, and no policy is named; allowed: PPO(env)",
    ),
    (
        lambda: PPO("CartPole-v1", verbose=1),
        "verbose = 1 is no argument of PPO; allowed: learn(..., progress_bar=True)",
    ),
    (lambda: PPO("CartPole-v1", sed=1), "sed is no argument of PPO; did you mean seed?"),
    (
        lambda: PPO("CartPole-v1", {"gamma": 0.9}),
        "config = {'gamma': 0.9}; allowed: a PPOConfig, written PPOConfig(gamma=0.9)",
    ),
    (lambda: PPO("CartPole-v1", TRPOConfig()), "config = TRPOConfig(); allowed: a PPOConfig"),
    (lambda: PPO("CartPole-v1", PPOConfig), f"config = {PPOConfig!r}; allowed: a PPOConfig"),
]


AGENT = PPO("CartPole-v1")
WRONG += [
    (
        lambda: AGENT.learn(total_timesteps=1, tb_log_name="x"),
        "tb_log_name is no argument of learn(); allowed: run_dir=, which names the run and its TensorBoard events",
    ),
    (
        lambda: AGENT.learn(total_timesteps=1, progress_bar=False, log_interval=4),
        "log_interval is no argument of learn(); allowed: nothing, every update is logged",
    ),
    (
        lambda: AGENT.learn(1, reset_num_timesteps=False),
        "reset_num_timesteps is no argument of learn(); "
        "allowed: nothing, learn() goes on counting; resume() finishes an interrupted training",
    ),
    (lambda: AGENT.learn(1, calback=None), "calback is no argument of learn(); did you mean callback?"),
    (
        lambda: PPO.load("nowhere", env="CartPole-v1", custom_objects={}),
        "custom_objects is no argument of load(); allowed: nothing, settings are those that were saved",
    ),
    (lambda: AGENT.predict([0.0] * 4, mask=None), "mask is no argument of predict(); allowed: action_masks="),
]


@pytest.mark.parametrize(("make", "line"), WRONG, ids=[line[:40] for _, line in WRONG])
def test_the_line_says_how_it_is_done_here(make, line):
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value) == line


def test_an_agent_of_ones_own_may_take_more():
    class Named(PPO):
        def __init__(self, env, config=None, *, name, seed=0):
            super().__init__(env, config, seed=seed)
            self.name = name

    class Anything(PPO):
        def __init__(self, env, **more):
            super().__init__(env)
            self.more = more

    assert Named("CartPole-v1", name="mine").name == "mine"
    assert Anything("CartPole-v1", n_steps=3).more == {"n_steps": 3}


def test_lists_are_taken_where_tuples_are_meant():
    config = PPOConfig(actor_hidden_sizes=[8, 4], critic_hidden_sizes=[])
    assert (config.actor_hidden_sizes, config.critic_hidden_sizes) == ((8, 4), ())
    assert config == PPOConfig(actor_hidden_sizes=(8, 4), critic_hidden_sizes=())
    with pytest.raises(ValueError, match=r"actor_hidden_sizes = \[8, 0\]; allowed: a tuple, each an integer"):
        PPOConfig(actor_hidden_sizes=[8, 0])


@pytest.mark.parametrize(
    ("name", "instead"),
    [("get_env", "agent.envs"), ("set_parameters", "agent.start_from(other)"), ("policy", "agent.actor")],
)
def test_another_librarys_attribute_is_told_its_name_here(name, instead):
    with pytest.raises(AttributeError) as error:
        getattr(AGENT, name)
    assert str(error.value).startswith(f"{name} is no attribute of PPO; allowed: {instead}")
    assert not hasattr(AGENT, name)


def test_what_nobody_has_is_pythons_own_line_and_an_error_inside_a_property_stays():
    class Faulty(PPO):
        @property
        def mine(self):
            return self.config.nothing_there

    with pytest.raises(AttributeError, match="'PPO' object has no attribute 'anything'"):
        _ = AGENT.anything
    with pytest.raises(AttributeError, match="'PPOConfig' object has no attribute 'nothing_there'"):
        _ = Faulty("CartPole-v1").mine


def test_stable_baselines3s_arguments_of_predict_are_taken():
    action, state = AGENT.predict([0.0] * 4, state=None, episode_start=None, deterministic=True)
    assert (action.shape, state) == ((), None)
