"""Rewrites what README.md holds between markers: the file map (from each file's first line of
documentation) and the results (from benches/results/*.json). Run it before a release: python tools/readme.py
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
OTHER = {
    ".ci/run": "what holds for every commit: format, lints, tests, documentation, with seconds",
    "ARCHITECTURE.md": "code map, invariants, reasons",
    "CHANGELOG.md": "what changed",
    "CONTRIBUTING.md": "how to add an op, and what a change must show",
    "Cargo.toml": "every dependency with its reason; the one profile",
    "build.rs": "compiles kernels/ with nvcc and embeds them; without nvcc it says so once",
    "examples/silkie-recipe.toml": "the published recipe as a configuration file",
    "fuzz/": "a body per reader, for cargo-fuzz and for the tests",
    "kernels/": "CUDA C++, one file or folder per op; its README says what is there",
    "tools/cuda-emulator/": "the emulated CUDA driver and cuBLASLt, for tests; its README has a map of its own",
    "tests/": "one binary, mirroring src; `tests/support` has what tests share",
}


def sentence(text: str) -> str:
    """The first sentence of a documentation comment, without a full stop."""
    return re.split(r"(?<=[^.])\.(?:\s|$)", text.strip())[0].rstrip(".:")


def first_words(path: Path) -> str:
    """What a file says about itself."""
    text = re.sub(r"\A#!.*\n", "", path.read_text())
    if path.suffix == ".rs":
        lines = []
        for line in re.match(r"(?://!.*\n)*", text).group().splitlines():
            if line.strip() == "//!" and lines:
                break
            lines.append(line.removeprefix("//!").strip())
        return sentence(" ".join(lines))
    if text.startswith('"""'):
        return sentence(" ".join(text[3:].split("\n\n")[0].split()).strip('"'))
    comment = re.match(r"(?:# .*\n)*", text).group()
    return sentence(" ".join(line.removeprefix("# ") for line in comment.splitlines()))


def file_map() -> str:
    """One line per file; an op's folder is one line."""
    files = subprocess.check_output(["git", "ls-files", "src", "benches", "tools"], cwd=ROOT, text=True).split()
    rows = []
    for file in sorted(files):
        path = Path(file)
        if any(folder.endswith("/") and file.startswith(folder) for folder in OTHER):
            continue
        if path.parent.parent == Path("src/ops"):
            if path.name == "mod.rs":
                rows.append((f"{path.parent}/", first_words(ROOT / path)))
        elif path.suffix in (".rs", ".py", "") and path.name:
            rows.append((file, first_words(ROOT / path)))
    rows = sorted(rows + list(OTHER.items()), key=lambda row: (row[0].count("/") > 0, row[0]))
    return "| file | what it is |\n|---|---|\n" + "\n".join(f"| `{file}` | {what} |" for file, what in rows)


def results() -> str:
    """One row per measurement; every file in benches/results has `rows`, `machine`, `date`, `commit` and `command`."""
    paths = sorted((ROOT / "benches" / "results").glob("*.json"))
    machines = dict.fromkeys(json.loads(path.read_text())["machine"] for path in paths)
    lines = [f"On {'; '.join(machines)}:", "", "| what | measured | against | command |", "|---|---|---|---|"]
    for path in paths:
        facts = json.loads(path.read_text())
        where = f"`{facts['command']}` ([{facts['date']}, {facts['commit']}]({path.relative_to(ROOT)}))"
        lines += [f"| {row['what']} | {row['measured']} | {row['against']} | {where} |" for row in facts["rows"]]
    return "\n".join(lines)


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text()
    for name, body in (("results", results()), ("file map", file_map())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text, count = pattern.subn(lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text)
        if count != 1:
            raise SystemExit(f"README.md: {count} pairs of {name} markers, expected 1")
    path.write_text(text)


if __name__ == "__main__":
    main()
