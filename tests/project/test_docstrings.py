"""What other rooms, notebooks and users call is described: parameters, results, errors, sources.

Public is what a package exports, what another room imports, and the classes that these return. All
else is its room's own affair, and a line will do.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache

import docstring_parser
import pytest
from conftest import ROOT

from pvmmu import errors

Definition = ast.FunctionDef | ast.ClassDef
#: An array is described by its type and shape: ``uint64[n]``, or by the name of a structured type.
ARRAY = re.compile(r"\b(u?int\d*|float\d*|bool|object|str)\[|\b[A-Z_]+(_DTYPE)?\[|`[A-Z_]{2,}`")
AS = re.compile(r"\bAs (for|in|of) ")
UNITS = re.compile(
    r"cycle|instruction|second|\bms\b|\bns\b|MHz|bytes?\b|MiB|pages?\b|times|share|ratio|percent|%|"
    r"probabilit|per |0 to 1|weight|factor|exponent|inch|rows?\b|points?\b|unit|entries|\bcount",
    re.I,
)
SOURCE = re.compile(
    r"SDM|APM|\bLinux\b|\bXen\b|KVM|VMI\b|lguest|numpy|RFC|\w+/\w[\w/-]*\.[chS]\b|§|[Tt]able \d"
)


def source(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text(encoding="utf-8")


@cache
def modules() -> dict[str, ast.Module]:
    out = {}
    for path in sorted((ROOT / "pvmmu").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        out[name] = ast.parse(path.read_text(encoding="utf-8"))
    return out


@cache
def definitions(module: str) -> dict[str, Definition]:
    body = modules()[module].body
    return {x.name: x for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef)}


@cache
def imports(module: str) -> dict[str, tuple[str, str]]:
    found = imports_of(modules()[module])
    return {alias: (home, name) for home, name, alias in found}


def imports_of(tree: ast.AST) -> list[tuple[str, str, str]]:
    return [
        (x.module, a.name, a.asname or a.name)
        for x in ast.walk(tree)
        if isinstance(x, ast.ImportFrom) and x.module and x.module.startswith("pvmmu")
        for a in x.names
    ]


def resolved(module: str, name: str) -> tuple[str, str] | None:
    """Follow re-exports to the module that defines a name."""
    for _ in range(5):  # a module may import a name from its own package
        if module not in modules():
            return None
        if name in definitions(module):
            return module, name
        if name not in imports(module):
            return None
        module, name = imports(module)[name]
    return None


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def callers() -> dict[str, ast.AST]:
    """The package's modules, notebooks and benchmarks."""
    out: dict[str, ast.AST] = dict(modules())
    for path in (ROOT / "benchmarks").glob("*.py"):
        out[path.name] = ast.parse(path.read_text(encoding="utf-8"))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        out[path.name] = ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.M))
    return out


@cache
def public() -> tuple[tuple[str, str], ...]:
    """Module and name of each public function and class."""
    found = set()
    for caller, tree in callers().items():
        for home, name, alias in imports_of(tree):
            if caller not in modules() or room(caller) != room(home):
                found.add(resolved(home, name))
            if f"{home}.{name}" in modules() and room(caller) != room(f"{home}.{name}"):
                used = (x for x in ast.walk(tree) if isinstance(x, ast.Attribute))
                inside = {x.attr for x in used if ast.unparse(x.value) == alias}
                found |= {resolved(f"{home}.{name}", x) for x in inside}
    for module in modules():
        package = (ROOT / module.replace(".", "/") / "__init__.py").exists()
        if package:
            found |= {resolved(module, name) for name in exported(module)}
        if package or module.count(".") == 1:
            found |= {(module, name) for name in definitions(module)}
    found.discard(None)
    while True:
        more = {c for m, n in found for c in returned(m, definitions(m)[n])} - found
        if not more:
            break
        found |= more
    return tuple(sorted((m, n) for m, n in found if not re.search(r"(^|\.)_", f"{m}.{n}")))


def returned(module: str, x: Definition) -> set[tuple[str, str]]:
    """Classes of ours that a function, or a method of a class, returns."""
    functions = [x] if isinstance(x, ast.FunctionDef) else methods(x)
    words = {w for f in functions if f.returns for w in re.findall(r"\w+", ast.unparse(f.returns))}
    found = {resolved(module, w) for w in words} - {None}
    return {(m, n) for m, n in found if isinstance(definitions(m)[n], ast.ClassDef)}


def exported(module: str) -> set[str]:
    """Names in a package's ``__all__``, or all that it imports if it has none and is a room."""
    for x in modules()[module].body:
        if isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == "__all__":
            return set(ast.literal_eval(x.value))
    return set(imports(module)) if module.count(".") <= 1 else set()


def methods(x: ast.ClassDef) -> list[ast.FunctionDef]:
    return [y for y in x.body if isinstance(y, ast.FunctionDef) and not y.name.startswith("_")]


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Each public function and method, with its full name."""
    described = {
        "Mode": definitions("pvmmu.modes.base")["Mode"],
        "TableMode": definitions("pvmmu.modes.rules")["TableMode"],
        "ShadowMode": definitions("pvmmu.modes.shadow.replayed")["ShadowMode"],
    }
    of_modes = {f.name for x in described.values() for f in methods(x)}
    bases = {*described, "Native"}
    out = []
    for module, name in public():
        x = definitions(module)[name]
        if isinstance(x, ast.FunctionDef):
            out.append((f"{module}.{name}", x))
            continue
        mode = bool({ast.unparse(b) for b in x.bases} & bases) and name != "TableMode"
        for f in methods(x):
            if not (mode and f.name in of_modes) or (name == "ShadowMode" and f.name == "replayed"):
                out.append((f"{module}.{name}.{f.name}", f))
    return out


def parameters(f: ast.FunctionDef) -> list[ast.arg]:
    a = f.args
    every = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs]
    every += filter(None, [a.kwarg])
    return [x for x in every if x.arg not in ("self", "cls")]


def is_array(annotation: ast.expr | None) -> bool:
    return annotation is not None and bool(
        re.search(r"^(?!.*Callable).*\b(ndarray|NDArray|ArrayLike)\b", ast.unparse(annotation))
    )


def is_float(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) in ("float", "float | None")


def described(doc: str) -> dict[str, str]:
    """Parameter -> type and description."""
    out = {}
    for p in docstring_parser.parse(doc, docstring_parser.DocstringStyle.NUMPYDOC).params:
        if p.args[0] in ("param", "attribute"):
            for name in re.split(r",\s*", p.arg_name):
                out[name.lstrip("*")] = f"{p.type_name or ''} {p.description or ''}"
    return out


def sections(doc: str, name: str) -> str:
    """The text of a section."""
    found = re.search(rf"^{name}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", doc, re.M | re.S)
    return found[1] if found else ""


def complaints_about(f: ast.FunctionDef) -> list[str]:
    doc = ast.get_docstring(f) or ""
    told, out = described(doc), []
    names = [p.arg for p in parameters(f)]
    out += [f"no parameter is called {name}" for name in told if name not in names]
    prose = doc.split("\nParameters\n---")[0]
    for p in parameters(f):
        text = told.get(p.arg, "")
        if not text and re.search(rf"`\*{{0,2}}{p.arg}`", prose):
            text = prose
        if not text.strip():
            out.append(f"parameter {p.arg} is not described")
        elif is_array(p.annotation) and not (ARRAY.search(text) or AS.search(text)):
            out.append(f"array {p.arg} has no dtype[shape]")
        elif is_float(p.annotation) and not UNITS.search(text):
            out.append(f"number {p.arg} has no unit")
    if is_array(f.returns) and not ARRAY.search(doc):
        out.append("the returned array has no dtype[shape]")
    if is_float(f.returns) and not UNITS.search(doc):
        out.append("the returned number has no unit")
    out += [
        f"raises {e}, which it does not say"
        for e in sorted(raised(f))
        if not re.search(rf"^([\w, ]+, )?({e}|PvmmuError)\b", sections(doc, "Raises"), re.M)
        and not re.search(rf"[Rr]aise `{e}`", prose)
    ]
    return out


def complaints_about_class(module: str, c: ast.ClassDef) -> list[str]:
    """Fields of a data class or named tuple, or what ``__init__`` takes, are described.

    A field may have a comment behind it instead.
    """
    lines, doc = source(module).split("\n"), ast.get_docstring(c) or ""
    told = described(doc)
    names = [p.arg for f in c.body if getattr(f, "name", "") == "__init__" for p in parameters(f)]
    fields = [
        x for x in c.body if isinstance(x, ast.AnnAssign) and "ClassVar" not in ast.unparse(x)
    ]
    told |= {
        ast.unparse(x.target): lines[x.end_lineno - 1].split("  # ")[1]
        for x in fields
        if "  # " in lines[x.end_lineno - 1]
    }
    plain = {ast.unparse(b) for b in c.bases} & {"NamedTuple"}
    if plain or any("dataclass" in ast.unparse(d) for d in c.decorator_list):
        names += [ast.unparse(x.target) for x in fields]
    missing = [
        n for n in names if not (n.startswith("_") or told.get(n, "").strip() or f"`{n}`" in doc)
    ]
    arrays = [
        ast.unparse(x.target) for x in fields
        if is_array(x.annotation) and not ast.unparse(x.target).startswith("_")
    ]  # fmt: skip
    return [f"field {n} is not described" for n in missing] + [
        f"array {n} has no dtype[shape]"
        for n in arrays
        if n not in missing and not ARRAY.search(told.get(n, doc))
    ]


def raised(f: ast.FunctionDef) -> set[str]:
    """Errors of ours that a function itself raises."""
    ours, out, left = package_errors(), set(), list(f.body)
    while left:
        x = left.pop()
        if isinstance(x, ast.Try) and any("PvmmuError" in ast.unparse(h) for h in x.handlers):
            left += [*x.handlers, *x.orelse, *x.finalbody]  # what the body raises is caught
            continue
        if isinstance(x, ast.Raise) and isinstance(x.exc, ast.Call):
            out.add(ast.unparse(x.exc.func))
        if not isinstance(x, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            left += ast.iter_child_nodes(x)
    return out & ours


@cache
def package_errors() -> frozenset[str]:
    names = {n for n, x in vars(errors).items() if isinstance(x, type) and issubclass(x, Exception)}
    for module in modules():
        for name, x in definitions(module).items():
            if isinstance(x, ast.ClassDef) and {ast.unparse(b) for b in x.bases} & names:
                names.add(name)
    return frozenset(names)


def test_public_functions_are_described():
    wrong = [f"{name}: {w}" for name, f in functions() for w in complaints_about(f)]
    for module, name in public():
        x = definitions(module)[name]
        if isinstance(x, ast.ClassDef):
            wrong += [f"{module}.{name}: {w}" for w in complaints_about_class(module, x)]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_the_check_sees_what_is_missing():
    text = """
def f(words: np.ndarray, share: float, *, of: int) -> np.ndarray:
    '''Return something.

    Parameters
    ----------
    words : ndarray
        The words.
    share : float
        How much.
    off : int
        What.
    '''
    raise WalkError("no")
"""
    [f] = ast.parse(text).body
    assert complaints_about(f) == [
        "no parameter is called off", "array words has no dtype[shape]",
        "number share has no unit", "parameter of is not described",
        "the returned array has no dtype[shape]", "raises WalkError, which it does not say",
    ]  # fmt: skip


def test_what_is_public_is_what_others_use():
    names = {f"{m}.{n}" for m, n in public()}
    assert {
        "pvmmu.replay.counts.replay", "pvmmu.guest.linux.process.Process",
        "pvmmu.x86.walk.walk_many", "pvmmu.modes.events.column", "pvmmu.guest.trace.Trace",
    } <= names  # fmt: skip
    assert "pvmmu.guest.linux.frames.allocate" not in names


@pytest.mark.parametrize("part", ["x86", "modes", "guest.linux"])
def test_facts_of_hardware_and_kernels_name_a_source(part):
    """Each module names the manual's section or the kernel's file that it was written from."""
    silent = []
    for name in modules():
        of_part = name.startswith(f"pvmmu.{part}.") and not name.endswith((".errors", ".all_sets"))
        if of_part and not SOURCE.search(source(name)):
            silent.append(name)
    assert not silent, silent
