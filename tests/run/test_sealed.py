"""JSON with its own digest: any change is noticed."""

import hashlib
import json
import random

import pytest

from klrl.run.sealed import sealed, unsealed

DATA = {"b": [1, 2.5, None, True], "a": {"text": "schräg \x1b \ud800", "nothing": {}}, "big": 2**60}


def test_what_is_sealed_is_read_back_and_has_the_digest_of_the_rest():
    text = sealed(DATA)
    assert unsealed(text) == DATA
    rest = {k: v for k, v in json.loads(text).items() if k != "sha256"}
    assert json.loads(text)["sha256"] == hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def test_any_changed_byte_is_noticed():
    text, g = sealed(DATA), random.Random(0)
    for place in range(len(text)):
        other = bytearray(text)
        other[place] ^= g.randrange(1, 256)
        with pytest.raises(ValueError, match=r"."):
            unsealed(bytes(other))


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"null", b"[]", b"[" * 100_000, b"\xff", json.dumps(DATA).encode(), sealed(DATA) + b"\n"]
)
def test_what_was_not_sealed_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        unsealed(text)
