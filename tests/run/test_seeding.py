"""Independent streams from one seed."""

from dataclasses import fields

import pytest
import torch

from klrl.run.seeding import Streams, environment_seeds, evaluation_seed

NAMES = [f.name for f in fields(Streams)]


def draw(generator, n=4):
    return tuple(torch.rand(n, generator=generator).tolist())


def draws(seed):
    return {name: draw(getattr(Streams.from_seed(seed), name)) for name in NAMES}


def test_the_same_seed_gives_the_same_streams():
    assert draws(3) == draws(3)


def test_no_two_purposes_and_no_two_seeds_share_a_stream():
    assert len({x for seed in range(20) for x in draws(seed).values()}) == 20 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_from_one_stream_does_not_move_another(name):
    streams = Streams.from_seed(0)
    draw(getattr(streams, name), 1000)
    for other in NAMES:
        assert (draw(getattr(streams, other)) == draws(0)[other]) == (other != name)


def test_a_restored_stream_continues_where_its_state_was_taken():
    streams, other = Streams.from_seed(0), Streams.from_seed(1)
    draw(streams.actions, 3)
    other.restore(streams.state())
    assert [draw(getattr(streams, n)) for n in NAMES] == [draw(getattr(other, n)) for n in NAMES]


def test_training_continued_training_and_evaluation_never_share_a_seed():
    training = [
        int(child.generate_state(1)[0])
        for seed in range(10)
        for steps in (0, 1, 2048)
        for child in environment_seeds(seed, steps).spawn(8)
    ]
    evaluation = [evaluation_seed(seed) for seed in range(10)]
    assert len({*training, *evaluation}) == len(training) + len(evaluation)
