"""Docstrings begin with a verb, a noun or their formula, so that each can be read on its own."""

import ast

from test_conventions import ROOT, SOURCES

# A docstring with one of these in front only makes sense to a reader who has read what is above it.
NO_BEGINNING = {
    "all", "also", "any", "as", "because", "before", "but", "by", "else", "everybody", "everything", "for", "from",
    "how", "if", "in", "inside", "instead", "it", "its", "left", "not", "nobody", "nothing", "of", "on", "once",
    "only", "others", "same", "see", "so", "some", "somebody", "something", "such", "that", "then", "there",
    "these", "this", "those", "to", "what", "when", "where", "whether", "which", "while", "who", "whoever", "whole",
    "whose", "why", "with", "within", "without",
}  # fmt: skip


def docstrings(path):
    """Line and text of every docstring of a file, also of those below an attribute."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", [])
        if not isinstance(body, list):
            continue
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        before = [None, *body]
        for i, statement in enumerate(body):
            follows = (documented and i == 0) or isinstance(before[i], (ast.Assign, ast.AnnAssign))
            if follows and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.lineno, str(statement.value.value)


def beginning(text):
    words = text.split()
    return " ".join(words[:2]).lower() if words else ""


def test_docstrings_begin_with_a_verb_or_a_noun():
    found = {f"{path.relative_to(ROOT)}:{line}": beginning(text) for path in SOURCES for line, text in docstrings(path)}
    assert not {where: words for where, words in found.items() if words.split()[0].strip(",.:;") in NO_BEGINNING}


def test_the_rule_finds_what_it_forbids(tmp_path):
    source = '"""Rooms."""\n\nx = 1\n"""Whether it is."""\n\n\ndef f():\n    """What it does."""\n'
    (tmp_path / "a.py").write_text(source)
    assert [beginning(text) for _, text in docstrings(tmp_path / "a.py")] == ["rooms.", "whether it", "what it"]
