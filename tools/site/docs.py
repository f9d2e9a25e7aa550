"""Pages of the site that are made of what is written elsewhere; a hook of mkdocs.

    pip install -e '.[docs]' && mkdocs build --strict

The first page is README.md; a page per config comes from its docstring, its row in the
table of docs/experiments.md and the fields it sets; the API from the docstrings.
Nothing is written twice.
"""

import ast
import importlib
import json
import pathlib
import re
import sys

import griffe
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
_MODULES = (
    "langevin",
    "mala",
    "underdamped",
    "tempering",
    "scores",
    "partition",
    "annealing",
    "importance",
    "walkers",
    "diagnostics",
    "hierarchy",
    "energies",
    "distributions",
    "kernels",
    "chains",
    "densities",
    "objectives",
    "metrics",
    "priors",
)


class ExampleSections(griffe.Extension):
    """Lets the site show an "Example:" of a docstring as what it is, code."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Calls it by the name that the site's parser knows."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = text


def on_config(config):
    """Adds the pages of docs/ that the menu does not name, by their headings."""
    named = str(config.nav)
    more = next(n["More"] for n in config.nav if "More" in n)
    for page in sorted((ROOT / "docs").glob("*.md")):
        if f"'{page.name}'" not in named:
            heading = re.search(r"^# (.*)$", page.read_text(), re.MULTILINE)[1]
            more.append({heading: page.name})
    return config


def on_files(files: Files, config) -> Files:
    """Adds the pages that are made here."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Replaces links out of docs/, to the code, by the code's name."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def link(match):
        target = (folder / match[2]).resolve()
        inside = "://" in match[2] or target.is_relative_to(ROOT / "docs")
        return match[0] if inside else match[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#]+)\)", link, markdown)


def pages() -> dict[str, str]:
    """Makes all pages that are not written by hand, by their path in the site."""
    rows = config_rows((ROOT / "docs" / "experiments.md").read_text())
    made = {
        "index.md": as_page((ROOT / "README.md").read_text()),
        "contributing.md": as_page((ROOT / "CONTRIBUTING.md").read_text()),
        "changes.md": as_page((ROOT / "CHANGELOG.md").read_text()),
        "api.md": api(),
        "configs/index.md": config_index(rows),
    }
    return made | {f"configs/{name}.md": config_page(name, rows[name]) for name in rows}


def as_page(text: str) -> str:
    """Makes a page of docs/ of a file of the root: links to code become its name."""
    text = text.replace('src="docs/', 'src="').replace("](docs/", "](")

    def link(match):
        label, target = match.groups()
        page = target.partition("#")[0]
        if target.startswith(("http", "#")) or (ROOT / "docs" / page).is_file():
            return match[0]
        return label

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)]+)\)", link, text)


def config_rows(page: str) -> dict[str, tuple[str, str, str]]:
    """Reads data, time and outcome per config from the table of docs/experiments.md."""
    table = page.partition("\n| config | data | time ")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", table, re.MULTILINE)
    return {name: cells for name, *cells in found}


def config_index(rows) -> str:
    """Makes the table of the configs, each with its page."""
    lines = [
        "# Configs",
        "",
        "Each is a file of `experiments/configs`; `default` holds every field, and",
        "explains it. Times are those of 2 cores and include compiling, pictures and",
        "the report.",
        "",
        "| config | data | time on 2 cores |",
        "|---|---|---|",
        *(
            f"| [`{name}`]({name}.md) | {data} | {time} |"
            for name, (data, time, _) in rows.items()
        ),
    ]
    return "\n".join(lines)


def config_page(name: str, row) -> str:
    """Tells what a config is, how it is run, what it takes and gives, what it sets."""
    file = ROOT / "experiments" / "configs" / f"{name}.py"
    headline, _, about = ast.get_docstring(ast.parse(file.read_text())).partition("\n")
    command = f"python -m experiments.main --config=experiments/configs/{name}.py"
    if found := re.search(r"^python -m .*(?:\n    .*)*", about, flags=re.M):
        command, about = found[0], about.replace(found[0], "")
    data, time, outcome = row
    set_here = "\n".join(
        f"| `{field}` | `{json.dumps(value)}` |" for field, value in departures(name)
    )
    outcome = re.sub(r"\]\((?=\w+\.md)", "](../", outcome)
    return f"""# {name}

{headline}

```bash
{command.replace(chr(10), " " + chr(92) + chr(10))}
```

{about.strip()}

| | |
|---|---|
| data | {data} |
| time on 2 cores | {time} |
| what comes out, published and measured | {outcome} |

## What it sets

Fields that depart from `experiments/configs/default.py`, which explains them all:

| field | value |
|---|---|
{set_here}
"""


def departures(name: str):
    """Returns the fields of a config with other values than the default's."""
    if str(ROOT) not in sys.path:  # mkdocs runs this file from elsewhere
        sys.path.insert(0, str(ROOT))
    from experiments.options import flat, read

    def fields(name):
        config = importlib.import_module(f"experiments.configs.{name}").get_config()
        return dict(flat(read(config).to_dict()))

    default = fields("default")
    return [
        (field, value)
        for field, value in fields(name).items()
        if field not in default or default[field] != value
    ]


def _defined(module: str, name: str) -> str:
    """Returns the path of the definition of a public name."""
    thing = getattr(importlib.import_module(module), name)
    return f"{thing.__module__}.{name}"


def api() -> str:
    """Lists the public names of `jebm` in order, then the modules for building more."""
    tree = ast.parse((ROOT / "jebm" / "__init__.py").read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    folder = ROOT / "jebm"
    modules = [
        name
        for name in names
        if (folder / f"{name}.py").is_file() or (folder / name).is_dir()
    ]
    where = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    own = [_defined(where[name], name) for name in names if name not in modules]
    lines = ["# API", "", "All of these are names of `jebm` itself."]
    lines += [f"\n::: {path}" for path in own]
    lines += [f"\n::: jebm.{name}" for name in dict.fromkeys((*modules, *_MODULES))]
    return "\n".join(lines) + "\n"
