"""The metrics of every update: read as a list of dicts whose oldest are packed."""

import random
import tracemalloc

import numpy as np
import pytest
import torch

from klrl.run.history import Block, History


def rows(n, seed=0):
    """Rows with columns that come and go, texts, and numbers that are none."""
    g = random.Random(seed)
    for i in range(n):
        row = {f"metric/{k}": g.gauss(0.0, 1e3) for k in range(5)}
        row["drift/kl"] = g.choice([float("nan"), float("inf"), 0.0, -0.0, 5e-324])
        row["train/stop_reason"] = g.choice(["accepted", "", "KL of 0.1 above 0.01", "schräg \U0001f600 \ud800"])
        if i % 3 == 0:
            row["eval/return"] = float(i)
        if i % 7 == 0:
            row["mixed"] = "now a text" if i % 2 else 1.0
        items = list(row.items())
        g.shuffle(items)
        yield dict(items)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 127, 128, 129, 1100, 3000])
def test_reads_as_the_list_of_its_rows(n):
    expected = list(rows(n))
    history = History(rows(n))
    assert repr(history) == repr(expected)  # NaN equals NaN, and keys have their order
    assert len(history) == n
    assert bool(history) == bool(expected)
    assert repr([history[i] for i in range(-n, n)]) == repr([expected[i] for i in range(-n, n)])
    for part in (slice(None), slice(3, -3), slice(None, None, -17), slice(5, 2)):
        assert repr(history[part]) == repr(expected[part])
    assert repr(list(reversed(history))) == repr(expected[::-1])
    for outside in (n, -n - 1):
        with pytest.raises(IndexError):
            history[outside]


def test_equals_what_has_the_same_rows():
    numbers = [{"drift/kl": float(i)} for i in range(200)]
    assert History(numbers) == numbers == History(numbers)
    assert History(numbers) != numbers[:-1]
    assert History(numbers) != [*numbers[:-1], {"drift/kl": 0.5}]
    assert History(numbers) != "text"


@pytest.mark.parametrize("n", [1, 100, 128, 2000])
def test_what_is_saved_is_what_comes_back_and_it_goes_on(n):
    saved = [{name: x.clone() for name, x in b.part.tensors.items()} for b in History(rows(n)).blocks()]
    history = History.of(map(Block.read, saved))
    assert repr(history) == repr(list(rows(n)))
    history.extend(rows(1500, seed=1))
    assert repr(history) == repr([*rows(n), *rows(1500, seed=1)])


def test_a_copy_stays_as_it_is():
    history = History(rows(1000))
    before = history.copy()
    history.extend(rows(3000, seed=1))
    assert repr(before) == repr(list(rows(1000)))
    history.become(before)
    assert repr(history) == repr(before)


@pytest.mark.parametrize("n", [1, 200, 2000])
def test_what_is_changed_in_the_newest_rows_counts(n):
    history = History(rows(n))
    history[-1]["eval/return"] = 7.0
    history[max(-n, -64)]["later"] = 8.0
    history.extend(rows(300))
    assert history[n - 1]["eval/return"] == 7.0
    assert history[max(0, n - 64)]["later"] == 8.0


def test_numbers_of_every_kind_become_floats_and_others_are_named():
    row = {"a": 1, "b": True, "c": np.float32(0.5), "d": np.array(2.0), "e": torch.tensor(3.0)}
    history = History([dict(row) for _ in range(200)])
    assert history[0] == {"a": 1.0, "b": 1.0, "c": 0.5, "d": 2.0, "e": 3.0}
    assert all(type(x) is float for x in history[0].values())
    for nothing in (None, [1.0, 2.0], {}):
        with pytest.raises(ValueError, match=r"history: mine = .*; allowed: a number or text"):
            History([{"mine": nothing}] * 200)


def test_a_row_takes_few_bytes_and_few_files_whatever_its_columns():
    def row(i):
        return {f"metric/{k}": float(i + k) for k in range(35)} | ({"eval/return": 1.0} if i % 2 else {})

    History(map(row, range(200)))
    tracemalloc.start()
    try:
        history = History(map(row, range(5_000)))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / 5_000 < 370  # as 36 floats have 288; a dict of them has more than 2,000
    assert sum(x.nbytes for b in history.blocks() for x in b.part.tensors.values()) / 5_000 < 300
    assert len(history.blocks()) <= 4 * 16


def test_adding_a_row_packs_few_others():
    """Of a million rows each is packed four times: by the 64, 1,024, 16,384 and 262,144."""
    history, packed, seen = History(), 0, {}
    for i in range(20_000):
        history.append({"drift/kl": float(i)})
        if i % 64 == 0:
            for block in history.blocks()[:-1]:
                packed += 0 if id(block) in seen else len(block)
                seen[id(block)] = block
    assert packed <= 3 * 20_000


GOOD = next(iter(History(rows(100)).blocks())).part.tensors
GOOD_ROW = next(rows(100))


def wrong(x):
    """Other tensors, and none, by what is wrong with them."""
    yield "gone", None
    yield "type", x.to(torch.bfloat16)
    yield "shape", x[None]
    yield "short", x[:-1]
    if x.dtype != torch.uint8:  # bytes are what they are
        place = [*GOOD_ROW].index("train/stop_reason") if len(x) == len(GOOD["values"]) else 0
        for number in (2**14, -(2**14), *([float("nan"), 0.5] if x.is_floating_point() else [])):
            other = x.clone()
            other[place] = number
            yield f"{number}", other


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, x in GOOD.items() for what, _ in wrong(x)])
def test_arrays_that_are_no_packed_rows_are_refused(name, what):
    other = dict(wrong(GOOD[name]))[what]
    tensors = {k: other if k == name else x for k, x in GOOD.items() if k != name or other is not None}
    with pytest.raises(ValueError, match=r"^history: [^\n]*$"):
        Block.read(tensors)


def in_format_4(rows):
    """Arrays that name the columns of every row, as format 4 had them."""
    names, texts, columns, values, ends = [], [], [], [], []
    for row in rows:
        for name, x in row.items():
            names += [name] * (name not in names)
            texts += [x] * (isinstance(x, str) and x not in texts)
            columns.append(-1 - names.index(name) if isinstance(x, str) else names.index(name))
            values.append(float(texts.index(x)) if isinstance(x, str) else x)
        ends.append(len(columns))
    arrays = {"columns": np.array(columns, np.int16), "values": np.array(values), "ends": np.array(ends)}
    for kind, words in (("names", names), ("texts", texts)):
        coded = [word.encode(errors="surrogatepass") for word in words]
        arrays |= {kind: np.frombuffer(b"".join(coded), np.uint8), f"{kind}_ends": np.cumsum([*map(len, coded)])}
    return {name: torch.from_numpy(x.copy()) for name, x in arrays.items()}


def test_rows_of_format_4_are_read():
    assert repr([*Block.read(in_format_4(rows(300)))]) == repr([*rows(300)])


@pytest.mark.parametrize("name", ["columns", "values", "ends", "names_ends"])
def test_broken_rows_of_format_4_are_refused(name):
    tensors = in_format_4(rows(100))
    with pytest.raises(ValueError, match=r"^history: [^\n]*$"):
        Block.read(tensors | {name: tensors[name][:-1]})


def test_rows_that_ask_for_more_than_there_is_cost_no_memory():
    """A layout is saved once, so few bytes can name it often: what that would fill is counted before it is made."""
    n = 2**15
    arrays = {"rows": np.zeros(n, np.int16), "values": np.zeros(1), "names": np.frombuffer(b"a", np.uint8).copy()}
    arrays |= {"layouts": np.zeros(n, int), "layouts_ends": np.array([n]), "names_ends": np.array([1])}
    arrays |= {"texts": np.zeros(0, np.uint8), "texts_ends": np.zeros(0, int)}
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"1 values in {n * n} cells"):
            Block.read(tensors)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
