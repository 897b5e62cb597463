"""Write `docs/api.md`: the public Python names, from their signatures and docstrings.

It reads the sources and imports none of them, so it needs neither torch nor diffusers.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "qvae_trt"

HEAD = """# Python API

Written by `make docs` from the docstrings. `import qvae_trt` imports neither torch nor TensorRT: a
name is loaded when it is first used. Sizes are `(height, width)` in Python.
"""
# What is public: the module that defines it, under each heading.
SECTIONS = {
    "A VAE for diffusers": {
        "load_vae": "runtime/vae.py",
        "TrtVae": "runtime/vae.py",
        "QvaeImageProcessor": "runtime/image_processor.py",
    },
    "A VAE for LightX2V": {
        "from_lightx2v_config": "runtime/lightx2v.py",
        "LightX2VVae": "runtime/lightx2v.py",
    },
    "Sizes and profiles": {
        "Resolution": "profiles.py",
        "Profile": "profiles.py",
        "Choice": "profiles.py",
        "load_static_sizes": "profiles.py",
        "load_profiles": "profiles.py",
    },
}
#: Returned by what is public; `qvae_trt` does not hold their names.
RETURNED = ("LightX2VVae", "Choice")
ERRORS = "errors.py"
#: Sections that explain a list of names, and their headings.
_LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}
_WIDTH = 88

Function = ast.FunctionDef
Named = ast.FunctionDef | ast.ClassDef


def api() -> str:
    """The whole page."""
    sections = [HEAD]
    for heading, names in SECTIONS.items():
        sections.append(f"## {heading}\n")
        for name, module in names.items():
            node = definitions(module)[name]
            made = describe_class(node) if isinstance(node, ast.ClassDef) else function(node)
            sections.append(f"### {name}\n\n{made}")
    sections.append(f"## Exceptions\n\n{errors()}")
    return "\n".join(sections)


def definitions(module: str) -> dict[str, Named]:
    tree = ast.parse((PACKAGE / module).read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, Named)}


def describe_class(node: ast.ClassDef) -> str:
    """A class with its fields, and those of its methods that have something to say."""
    fields = [source(part) for part in node.body if isinstance(part, ast.AnnAssign)]
    members = [
        part
        for part in node.body
        if isinstance(part, Function)
        and not part.name.startswith("_")
        and (said := ast.get_docstring(part))
        and not said.startswith("As `")
    ]
    head = [f"class {node.name}{':' if fields else ''}", *(f"    {field}" for field in fields)]
    returned = ["Its name is not in `qvae_trt`; other calls return it.\n"]
    return "\n".join(
        [
            fence(head),
            *(returned if node.name in RETURNED else []),
            words(node),
            *(f"#### {node.name}.{member.name}\n\n{function(member)}" for member in members),
        ]
    )


def function(node: Function) -> str:
    kinds = [ast.unparse(decorator) for decorator in node.decorator_list]
    kept = [f"@{kind}" for kind in kinds if kind in ("property", "classmethod", "staticmethod")]
    return "\n".join([fence([*kept, *signature(node)]), words(node)])


def signature(node: Function) -> list[str]:
    """In one line if it fits, else a line for each parameter."""
    result = f" -> {source(node.returns)}" if node.returns else ""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    without = [None] * (len(plain) - len(given.defaults))
    parameters = [parameter(a, d) for a, d in zip(plain, [*without, *given.defaults], strict=True)]
    if given.vararg:
        parameters.append(f"*{source(given.vararg)}")
    elif given.kwonlyargs:
        parameters.append("*")
    parameters += [
        parameter(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        parameters.append(f"**{source(given.kwarg)}")
    whole = f"def {node.name}({', '.join(parameters)}){result}"
    if len(whole) <= _WIDTH:
        return [whole]
    return [f"def {node.name}(", *(f"    {one}," for one in parameters), f"){result}"]


def parameter(arg: ast.arg, default: ast.expr | None) -> str:
    sign = " = " if arg.annotation else "="
    return source(arg) + (f"{sign}{source(default)}" if default else "")


def source(node: ast.AST) -> str:
    """As it is written, in this project's quotes."""
    return ast.unparse(node).replace("'", '"')


def words(node: Named) -> str:
    """A docstring as Markdown: its sections become lists."""
    text = ast.get_docstring(node) or ""
    paragraphs, *sections = re.split(r"^([A-Z][a-z]+):\n", text, flags=re.MULTILINE)
    out = [f"{unwrapped(part)}\n" for part in paragraphs.strip().split("\n\n") if part]
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        body = textwrap.dedent(body).strip()
        if name in _LISTS and re.match(r"[\w, ]+: ", body):
            out.append(f"**{_LISTS[name]}**\n")
            out += [item(entry) for entry in re.split(r"\n(?=\S)", body)]
            out.append("")
        else:
            out.append(f"**{name}**: {unwrapped(body)}\n")
    return "\n".join(out)


def item(entry: str) -> str:
    """`name: what it is`; one line may explain several names."""
    names, _, said = entry.partition(": ")
    marked = ", ".join(f"`{name}`" for name in names.split(", "))
    return f"- {marked}: {unwrapped(said)}"


def unwrapped(text: str) -> str:
    """One line; outside of code a `*` or `_` is no mark."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    pieces[::2] = [re.sub(r"([*_<\[])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def errors() -> str:
    """A table of what may be raised."""
    rows = ["| exception | is a | means |", "| --- | --- | --- |"]
    for name, node in definitions(ERRORS).items():
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
            first = unwrapped((ast.get_docstring(node) or "").split("\n\n")[0])
            rows.append(f"| `{name}` | {bases} | {first} |")
    return "\n".join(rows) + "\n"


def fence(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(api(), encoding="utf-8")
