"""Tasks scored from best guesses: cases spelled out by hand, and laws of items."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.closed_loop.tasks import Task, closing_bracket, copying, indentation, repeated_identifier, right, tasks_of
from runtime.closed_loop.text_windows import OwnTokens, spelled
from runtime.small_model.model import FOLDERS
from runtime.small_model.text import Ids
from traces.errors import UserError

V = [
    b"<|file|>", b"f", b"x", b"0", b"'", b",",
    b"(", b"[", b"{", b")", b"]", b"}", b"'):", b"()", b"())", b"](", b" )", b"])",
    b"\n", b"\n\n", b"\n   ", b"\n\n   ", b"\n       ", b"   ", b" y", b"\t", b"\n\t",
    b"run", b" run", b"_", b"all", b"all(", b"._", b"re", b"turn", b" ", b"2", "\u00ef".encode(), b"\xef\xbf\xbd",
]  # fmt: skip
ID = {token: i for i, token in enumerate(V)}


def row(*tokens: bytes) -> Ids:
    """One window [1, M] of these tokens."""
    return np.array([[ID[token] for token in tokens]])


def of(text: str) -> Ids:
    """One window of the tokens that blanks divide; `~` is a blank of a token."""
    return row(*(token.replace("~", " ").encode() for token in text.split()))


def items(task: Task) -> list[list[int]]:
    return [task.at[a:b].tolist() for a, b in zip(task.offset, task.offset[1:], strict=False)]


def answers(task: Task, windows: Ids, **guesses: bytes) -> list[bool]:
    """What is right where the best guesses are the truth but at these positions (`p3=b"x"`)."""
    best = windows[:, 1:].copy()
    for position, token in guesses.items():
        best[0, int(position[1:])] = ID[token]
    return [bool(x) for x in right(task, best, windows)]


def test_a_bracket_is_closed_by_the_same_one_and_not_a_token_early() -> None:
    window = of("f ( x [ 0 ] ) ,")  # ] is token 5, predicted at position 4; ) is token 6, predicted at position 5
    task = closing_bracket(V, window)
    assert items(task) == [[3, 4], [4, 5]]
    assert answers(task, window) == [True, True]
    assert answers(task, window, p5=b"'):") == [True, True] and answers(task, window, p5=b" )") == [True, True]
    assert answers(task, window, p5=b"]") == [True, False] and answers(task, window, p5=b",") == [True, False]
    assert answers(task, window, p3=b"]") == [False, True]  # too early
    assert answers(task, window, p3=b"()") == [True, True]  # closes nothing of the text's
    assert answers(task, window, p4=b")") == [False, False]
    assert answers(task, window, p0=b")", p6=b"]") == [True, True]  # where no item is


@pytest.mark.parametrize(
    "text",
    ["x ) x", "0 } x ] f", "( x ] f", "[ x ) f", "f () x", "( ) x"],
    ids=["never opened", "two", "of another kind", "the other way", "of one token", "nothing stands before"],
)
def test_a_bracket_that_the_window_does_not_say_is_due_is_no_item(text: str) -> None:
    assert items(closing_bracket(V, of(text))) == []


def test_brackets_that_a_token_opens_and_closes_itself_are_passed_over() -> None:
    window = of("f ( [ x ]( () x ) ())")  # `](` closes [ and opens (; `)` closes that; `())` closes the first
    task = closing_bracket(V, window)
    assert items(task) == [[2, 3], [5, 6], [6, 7]]
    assert answers(task, window, p3=b"]") == [True] * 3 and answers(task, window, p7=b")") == [True] * 3
    assert answers(task, window, p7=b"()") == [True, True, False]
    kind = task.kind[[ID[t] for t in (b"())", b")", b"]", b"](", b"])", b"()", b"x", b"(", b"}")]].tolist()
    assert kind == [kind[0]] * 2 + [kind[2]] * 3 + [0] * 3 + [kind[8]] and len({kind[0], kind[2], 0, kind[8]}) == 4


def test_a_token_that_closes_two_brackets_is_one_item() -> None:
    assert items(closing_bracket(V, of("f ( x ( [ 0 ]) )"))) == [[4, 5], [5, 6]]


def test_what_no_pair_is_does_not_hide_the_pairs_behind_it() -> None:
    assert items(closing_bracket(V, of(") ] x ( x ) } { f }"))) == [[3, 4], [7, 8]]


def test_always_the_same_bracket_closes_nothing() -> None:
    window = of("f ( x ) , f [ 0 ] , { x , 0 } f")
    task = closing_bracket(V, window)
    assert len(items(task)) == 3
    for token in (b")", b"]", b"}", b",", b"'):"):
        assert not right(task, np.full_like(window[:, 1:], ID[token]), window).any()


def test_a_lines_indentation_whatever_blank_lines_there_are() -> None:
    window = row(b"x", b"\n   ", b" y", b"x", b"\n\n   ", b" y", b"\n", b"   ", b" y", b"x", b"\n")
    task = indentation(V, window)  # the last line end may go on behind the window
    assert items(task) == [[0], [3], [5, 6]]
    assert answers(task, window) == [True] * 3
    assert answers(task, window, p0=b"\n\n   ", p3=b"\n   ", p5=b"\n\n") == [True] * 3
    assert answers(task, window, p0=b"\n       ") == [False, True, True]
    assert answers(task, window, p3=b"x") == [True, False, True]  # ends no line
    assert answers(task, window, p6=b"\n   ") == [True, True, False]  # another line, not this one's blanks
    assert answers(task, window, p5=b"\n   ") == [True, True, False]
    assert answers(task, window, p0=b"\n\t") == [False, True, True]


def test_blanks_within_a_line_and_cut_line_ends_are_no_items() -> None:
    assert items(indentation(V, row(b"\n", b"   ", b"x", b"   ", b"x", b"\t", b" y", b"\n   "))) == []


def test_two_line_ends_in_a_row_are_one_item() -> None:
    assert items(indentation(V, row(b"x", b"\n\n", b"\n", b"f"))) == [[0, 1]]


def test_an_identifier_that_was_there_is_completed() -> None:
    window = of("( run _ all ( ~run _ all )")  # again at tokens 5 .. 7: those but the first, at positions 5 and 6
    task = repeated_identifier(V, window)
    assert items(task) == [[5, 6]]
    assert answers(task, window) == [True]
    assert answers(task, window, p4=b"x", p1=b"x", p7=b"x") == [True]  # its first token is given
    assert answers(task, window, p5=b"x") == [False] and answers(task, window, p6=b"all(") == [False]


@pytest.mark.parametrize(
    ("text", "n"),
    [
        (", run _ all , run _ all , run _ all ,", 2),
        (", run _ all , ~ run _ all ,", 1),
        ("run _ all , run _ all ,", 0),  # the first may be the end of a longer name
        (", run _ all , run _ all", 0),  # the second may go on
        (", run _ all 2 , run _ all ,", 0),
        (", run _ all , run _ f ,", 0),
        (", run , run ,", 0),
        (", re turn , re turn ,", 0),
        (", run _ all , run _ all( ,", 0),
        (", _ all , ._ all ,", 0),
        (", 2 run _ , 2 run _ ,", 0),
        (", run _ \u00ef , run _ \u00ef ,", 0),
        (", \u00ef run _ , \u00ef run _ ,", 0),
    ],
)
def test_which_identifiers_are_items(text: str, n: int) -> None:
    assert len(items(repeated_identifier(V, of(text)))) == n


def test_copying_asks_for_the_second_copy_but_its_first_four() -> None:
    passages = np.array([[9, 1, 2, 3, 4, 5, 6, 7], [9, 8, 8, 8, 8, 8, 8, 1]])
    windows, task = copying(passages, 10, 3, 6)
    assert windows.tolist() == [[3, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6], [3, *[8] * 12]]
    assert items(task) == [[10], [11]] * 2 and task.window.tolist() == [0, 0, 1, 1]  # tokens 11 and 12
    best = windows[:, 1:].copy()
    best[0, :10], best[1, 11] = 9, 9
    assert right(task, best, windows).tolist() == [True, True, True, False]
    unled, task = copying(passages, 10, None, 6)
    assert unled.tolist() == windows[:, 1:].tolist() and items(task) == [[9], [10]] * 2


@pytest.mark.parametrize("length", [4, 8])
def test_a_passage_that_cannot_be_copied(length: int) -> None:
    with pytest.raises(UserError, match=rf"^copying: a passage of {length} tokens; it must have 5 \.\. 7$"):
        copying(np.zeros((2, 8), np.int64), 10, 0, length)


def tasks(windows: Ids, vocabulary: Sequence[bytes] = V) -> list[tuple[Task, Ids]]:
    own, copied = copying(windows, len(vocabulary), 0, windows.shape[1] - 1)
    return [*((task, windows) for task in tasks_of(vocabulary, windows)), (copied, own)]


WINDOWS = st.integers(6, 24).flatmap(
    lambda m: st.lists(st.lists(st.sampled_from(range(len(V))), min_size=m, max_size=m), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=60)
@given(windows=WINDOWS.map(np.array), seed=st.integers(0, 99))
def test_laws_of_items(windows: Ids, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for task, asked in tasks(windows):
        n, m = asked.shape
        assert task.offset[0] == 0 and task.offset[-1] == len(task.at) and (np.diff(task.offset) >= 1).all()
        assert ((task.at >= 0) & (task.at < m - 1)).all() and ((task.window >= 0) & (task.window < n)).all()
        assert len(task.kind) == len(V) and len(task.window) == len(task.offset) - 1
        assert right(task, asked[:, 1:], asked).all()
        of_an_item = np.zeros((n, m - 1), bool)
        of_an_item[np.repeat(task.window, np.diff(task.offset)), task.at] = True
        noise = rng.integers(0, len(V), (n, m - 1))
        assert right(task, np.where(of_an_item, asked[:, 1:], noise), asked).all()
        half = np.where(rng.random((n, m - 1)) < 0.5, asked[:, 1:], noise)
        elsewhere = np.where(of_an_item, half, rng.integers(0, len(V), (n, m - 1)))
        assert (right(task, half, asked) == right(task, elsewhere, asked)).all()


@settings(deadline=None, max_examples=40)
@given(windows=WINDOWS.map(np.array), seed=st.integers(0, 99))
def test_another_order_of_windows_is_another_order_of_items(windows: Ids, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(windows))
    for (task, asked), (moved, elsewhere) in zip(tasks(windows), tasks(windows[order]), strict=True):
        was = [(task.window[i], positions) for i, positions in enumerate(items(task))]
        now = [(order[moved.window[i]], positions) for i, positions in enumerate(items(moved))]
        assert sorted(was) == sorted(now) and (elsewhere == asked[order]).all()


def test_windows_without_items() -> None:
    windows = of("x x x x x x x")
    for task in tasks_of(V, windows):
        assert right(task, windows[:, 1:], windows).shape == (0,) and task.offset.tolist() == [0]


def test_what_our_tokens_spell() -> None:
    tokens = OwnTokens(FOLDERS["tiny-moe"] / "tokenizer.json")
    vocabulary = spelled(tokens, 2048)
    text = "#\ndef f_x(y):\n        return {'a': [y, f_x(y)]}\n\nz = 1\n"
    ids = tokens.encode(text)
    assert vocabulary[0] == b"<|file|>" and b"".join(vocabulary[i] for i in ids).decode() == text
    pieces = tokens.encode("\u03b1" * 2 + "\u2603")  # an alpha is no token of its own
    assert {vocabulary[i] for i in pieces} == {"\ufffd".encode()}
    found = {
        task.name: [b"".join(vocabulary[ids[p + 1]] for p in at) for at in items(task)]
        for task in tasks_of(vocabulary, np.array([ids]))
    }
    assert found == {
        "closing bracket": [b"y):", b"y)", b")]", b"]}"],
        "indentation": [b"\n", b"\n       ", b"\n\n"],
        "repeated identifier": [b"_x"],
    }
