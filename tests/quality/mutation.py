"""What mutants there are: cosmic-ray's, less those that a rule shows to be no other program.

A mutant is the package with one small edit. The edits are those of cosmic-ray's operators; of its
many replacements of one binary operator or comparison one or two are taken (``_OPERATORS``), as
most others differ only in how wild they are. Rules (`reason`) leave out what cannot change a
result.
"""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

_BINARY = (
    "Add_Sub Sub_Add Mul_FloorDiv Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul RShift_LShift "
    "LShift_RShift BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd"
)
_COMPARISON = (
    "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
)
_OPERATORS: Final = (
    *(f"ReplaceBinaryOperator_{x}" for x in _BINARY.split()),
    *(f"ReplaceComparisonOperator_{x}" for x in _COMPARISON.split()),
    "ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceUnaryOperator_Delete_Not", "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
    "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
    "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop",
)  # fmt: skip

#: Decorators that change how fast a function is, never what it returns.
_FOR_SPEED: Final = {
    "kernel", "part", "lean", "lean_part", "inner", "swift", "functools.cache",
    "functools.lru_cache",
}  # fmt: skip


class Mutant(NamedTuple):
    """One edit.

    Parameters
    ----------
    file : str
        Path from the package's parent.
    operator, occurrence : str, int
        cosmic-ray's name for it.
    line : int
        Where, from 1.
    function : str
        The function that it is in.
    before, after : str
        The lines that it changes, without indentation.
    """

    file: str
    operator: str
    occurrence: int
    line: int
    function: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """A name that survives edits of other lines."""
        return f"{self.file} {self.function}: {self.before} -> {self.after}"

    def source(self, root: Path) -> str:
        """Return the mutated file."""
        return _mutated((root / self.file).read_text(), self.operator, self.occurrence)


def _mutated(source: str, operator: str, occurrence: int) -> str:
    return str(mutate_code(source, get_operator(f"core/{operator}")(), occurrence))


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


@functools.cache
def _never_evaluated(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans of annotations (``from __future__ import annotations`` keeps them text)."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if part is not None:
                spans.append(_span(part))
    return spans


@functools.cache
def _only_words(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans of `__repr__`: how an object prints itself."""
    nodes = ast.walk(ast.parse(source))
    return [_span(n) for n in nodes if isinstance(n, ast.FunctionDef) and n.name == "__repr__"]


def reason(source: str, operator: str, start: tuple[int, int], after: str) -> str:
    """Return the rule by which a mutant is no other program; empty if there is none."""

    def within(spans: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
        return any(a <= start < b for a, b in spans)

    if within(_never_evaluated(source)):
        return "a type annotation"
    if within(_only_words(source)):
        return "the words of a `__repr__`"
    if operator == "RemoveDecorator":
        line = source.splitlines()[start[0] - 1].strip().removeprefix("@").partition("(")[0]
        if line in _FOR_SPEED:
            return "a decorator for speed"
    try:
        same = ast.dump(ast.parse(after)) == ast.dump(ast.parse(source))
    except SyntaxError:
        return "no Python"
    return "the same program, spelled otherwise" if same else ""


def _changed(before: str, after: str) -> tuple[int, str, str]:
    """Return the first changed line with text (from 1), and the changed lines of both texts."""
    a, b = before.splitlines(), after.splitlines()
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
    tail = 0
    while tail < min(len(a), len(b)) - first and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    old, new = a[first : len(a) - tail], b[first : len(b) - tail]
    first += next((i for i, line in enumerate(old) if line.strip()), 0)
    return first + 1, " ".join(" ".join(old).split()), " ".join(" ".join(new).split())


def _function(source: str, line: int) -> str:
    """Name of the innermost function or class at a line."""
    kinds = ast.FunctionDef | ast.ClassDef
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    names = [n.name for n in found if n.lineno <= line <= (n.end_lineno or 0)]
    return names[-1] if names else "(module)"


def positions(source: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yield operator, occurrence and place of every edit of a source."""
    nodes = list(ast_nodes(get_ast(source)))
    for operator in _OPERATORS:
        made = get_operator(f"core/{operator}")()
        places = (p for node in nodes for p in made.mutation_positions(node))
        for occurrence, (start, _) in enumerate(places):
            yield operator, occurrence, start


def draw(
    root: Path, files: list[str], n: int, seed: int
) -> tuple[list[Mutant], int, dict[str, int]]:
    """Return a random sample of the mutants of some files.

    Parameters
    ----------
    root : Path
        The package's parent.
    files : list of str
        Paths from there.
    n : int
        Mutants of the sample; all, if there are fewer.
    seed : int
        The sample is a function of the sources and the seed.

    Returns
    -------
    mutants, edits, left_out : list of Mutant, int, dict of str to int
        The sample, the number of all edits, and how many were drawn but left out, by rule.
    """
    every = [(f, *p) for f in files for p in positions((root / f).read_text())]
    random.Random(seed).shuffle(every)
    chosen: list[Mutant] = []
    left_out: dict[str, int] = {}
    for file, operator, occurrence, start in every:
        if len(chosen) == n:
            break
        source = (root / file).read_text()
        try:
            after = _mutated(source, operator, occurrence)
        except AttributeError:  # an exception of a module, ``except a.B``
            after = "not made by cosmic-ray"
        rule = reason(source, operator, start, after)
        if rule:
            left_out[rule] = left_out.get(rule, 0) + 1
            continue
        line, old, new = _changed(source, after)
        where = _function(source, line)
        chosen.append(Mutant(file, operator, occurrence, line, where, old, new))
    return chosen, len(every), left_out
