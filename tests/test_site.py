"""The documentation: the site builds, its links lead somewhere, it loads nothing from elsewhere, what it says is so."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import medusa_cl
from medusa_cl import tasks
from medusa_cl.claims import published
from medusa_cl.configs.check import check_overrides

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OURS = ("index.md", "concepts.md", "howto/extend.md", "found.md", "reconstructed.md", "errors.md", "cite.md")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def load_pages() -> Any:
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module  # where a NamedTuple looks its annotations up
    spec.loader.exec_module(module)
    return module


pages = load_pages()


# ---- the site as it is built


class Page(HTMLParser):
    """What a page links to, what it loads, what can be linked to in it, and its text outside of code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.prose = ""
        self._code = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self._code += tag in ("code", "script", "style")
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found["href"])
        self.loaded += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.prose += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """Every page of the site, built as strictly as it can be."""
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"} | proxies
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {path.relative_to(out).as_posix(): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    for name, page in found.items():
        for resource in page.loaded if name != "404.html" else ():  # that page's depend on where the site is put
            assert not re.match(r"(https?:)?//", resource), (name, resource)
            if not resource.startswith(("data:", "#")):
                assert (out / name).parent.joinpath(resource.split("?")[0].split("#")[0]).resolve().is_file(), resource
    for sheet in out.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet
    return found


def test_every_link_leads_to_a_page_and_to_a_place_in_it(site: dict[str, Page]) -> None:
    assert len(site) > 25
    for name, page in site.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or name == "404.html":
                continue
            target, _, anchor = link.partition("#")
            place = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
            assert place in site, (name, link)
            assert not anchor or anchor in site[place].anchors, (name, link)


def test_pages_leave_no_markdown_behind(site: dict[str, Page]) -> None:
    """What GitHub takes for a list, a table or a link may be plain text to another reader of Markdown."""
    for name, page in site.items():
        for left in (r"^\s*[-*] \w.*\n\s*[-*] \w", r"\|---", r"\]\(", r":::", r"\*\*\w"):
            assert not re.search(left, page.prose, re.MULTILINE), (name, left)


def test_the_reference_shows_every_public_name(site: dict[str, Page]) -> None:
    anchors = set().union(*(page.anchors for name, page in site.items() if name.startswith("reference/")))
    for name, home in medusa_cl._HOME.items():
        assert f"medusa_cl.{home}.{name}" in anchors
    named = set(re.findall(r"\[`(\w+)`\]\[medusa_cl", read("reference/index.md")))
    assert named == set(medusa_cl._HOME)


def test_every_page_of_the_repository_is_in_the_navigation(site: dict[str, Page]) -> None:
    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from leaves(child)

    nav = {*leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]), *pages.measurements()} - {"results"}
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    made = {pages.TUTORIAL, pages.CONFIGURATION, pages.COMMANDS, *pages.COPIED}
    assert nav == written | made
    assert {name.removesuffix(".md") + ".html" for name in nav} <= set(site)


# ---- pages that are made


def test_links_out_of_the_pages_lead_to_what_the_site_shows() -> None:
    turned = pages.linked("[a](../benchmarks/results/data.md#x) [b](../medusa_cl/tasks.py) ![c](p.png)", "running.md")
    assert turned == "[a](results/data.md#x) `b` ![c](p.png)"
    assert pages.linked("[a](docs/data.md) [b](#b) [c](https://x.org)", "contributing.md") == (
        "[a](data.md) [b](#b) [c](https://x.org)"
    )
    assert pages.linked("[a](../data.md#y)", "howto/extend.md") == "[a](../data.md#y)"


def test_the_tutorial_page_is_the_script() -> None:
    page = pages.tutorial()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    script = (ROOT / "examples/tutorial.py").read_text(encoding="utf-8")
    plain = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert [line for line in code.splitlines() if line] == plain
    assert page.startswith("# Tutorial")
    assert "\n# " not in re.sub(r"```.*?```", "", page, flags=re.DOTALL)


FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_configuration_page_has_every_key_with_its_comment(path: Path) -> None:
    """Against the keys as OmegaConf reads them, and the comments as a plain search finds them."""
    group = "" if path.parent == ROOT / "configs" else path.parent.name
    found = {key.name: key for key in pages.keys(path, group)}
    raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    text = path.read_text(encoding="utf-8")
    prefix = "" if "@package _global_" in text or not group else f"{group}."
    expected = {name: value for name, value in flat(raw, prefix) if name not in pages.NAMES}
    assert {name for name, key in found.items() if key.value} == set(expected)
    for name, value in expected.items():
        assert yaml.safe_load(found[name].value) == value or isinstance(value, list | str), name
    said = " ".join(key.about for key in found.values())
    for comment in re.findall(r"^ *[\w-]+:.* # (.*)$", text.split("\nhydra:")[0], re.MULTILINE):
        assert comment in said, comment
    assert group in ("", *pages.GROUPS), "a group that the page leaves out"


def flat(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key that is no mapping, by its full name; an empty mapping is a value."""
    for key, value in tree.items():
        if key in pages.HIDDEN:
            continue
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_configuration_page_shows_every_option_once() -> None:
    page = pages.configuration()
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    options = [path for path in FILES if path.parent.name != "configs"]
    assert len(headings) == len(set(headings)) == len(options)
    for heading in headings:
        check_overrides([heading])


# ---- what pages say


def results(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def figures() -> Iterator[str]:
    """Every figure of docs/found.md with the words around it, from the measurements."""
    yield f"universal features ({published.claims()[0].value:+.2f} %)"
    gains = results("demo")["transfer"]
    yield f"gains {gains['ufl_gain']:+.1f} % on new tasks"
    yield f"{gains['head_gain']:+.1f} % of that is the head"
    yield f"{gains['feature_gain']:+.1f} % is better features"
    yield f"attention itself gives {gains['attention_gain']:+.1f} %, and the whole run {gains['control_gain']:+.1f} %"
    yield from composed(results("composition")["cells"])
    yield from speeds(results("speed"))
    yield from costs(results("efficiency"))
    survey, prepared = (results("data")["read_ms"][name] for name in ("survey pack", "prepared file"))
    yield f"read {survey / prepared:.1f} times as fast"
    assert "expected 3x" in results("data")["failures"][0]
    yield f"the slower layout in {len(results('layouts')['failures'])} places"


def composed(cells: list[dict[str, Any]]) -> Iterator[str]:
    frozen = [cell for cell in cells if cell["freeze"] == "all"]
    free = [cell for cell in cells if cell["freeze"] != "all"]
    assert {cell["forgetting_percent"]["mean"] for cell in frozen} == {0.0}
    lost = [cell["forgetting_percent"]["mean"] for cell in free]
    yield f"forget between {min(lost):.1f} and {max(lost):+.1f} %"
    slow = next(cell for cell in frozen if cell["plugin"] == "none" and cell["choice"] == "0.002")["new"]["mean"]
    yield f"{sum(cell['new']['mean'] > slow for cell in free)} of {len(free)} ways to train the backbone"
    for cell in free:  # by more than the spread nothing is better at new tasks than the freeze
        assert cell["new"]["mean"] <= max(1.0, cell["new"]["deviation"])
    overall = {(cell["freeze"], cell["plugin"]): f"{cell['all']['mean']:+.1f} %" for cell in cells}
    yield f"trainable backbone is {overall['none', 'replay']} ahead"
    yield f"and {overall['stages', 'replay']} if a part"
    yield f"EWC is at {overall['none', 'EWC']}, synaptic intelligence at {overall['none', 'SI']}"
    yield f"distillation (LwF) at {overall['none', 'LwF']}, dark experience replay at {overall['none', 'DER']}"


def speeds(speed: dict[str, Any]) -> Iterator[str]:
    large, small = (speed["adding"]["found"]["nets"][net]["rows"] for net in ("hrnet_w18", "tf_efficientnet_lite0"))
    naive, quick = large["Naive, everything trained"], large["Medusa, cached"]
    yield f"takes {quick['step_ms']:.0f} ms on one thread, {naive['step_ms'] / quick['step_ms']:.1f} times less"
    yield f"in every step it is {naive['step_ms'] / large['Medusa, uncached']['step_ms']:.1f} times less"
    assert quick["values"][0] == large["Medusa, uncached"]["values"][0]
    yield f"over 4 passes, it is {naive['step_ms'] / quick['with_build_ms']:.1f} times less"
    steps = speed["tasks"]["found"]["step_ms"]
    assert steps[15] == pytest.approx(steps[0], rel=0.05)
    naive, quick = small["Naive, everything trained"], small["Medusa, cached"]
    yield f"it is {naive['step_ms'] / quick['step_ms']:.1f} times, and there"
    yield f"{quick['values'][0]:.2f}° against {naive['values'][0]:.2f}°"
    middle = sum(quick["values"]) / 3
    yield f"differ by {(sum((v - middle) ** 2 for v in quick['values']) / 2) ** 0.5:.2f}°"
    asked = speed["inference"]["found"]["ms"]["hrnet_w18_small_v2"]
    yield f"({asked['Medusa, light'] / asked['MTI-Net, tricks']:.2f} of it on HRNet-W18-small)"


def costs(efficiency: dict[str, Any]) -> Iterator[str]:
    more = efficiency["one_more"]
    first, last = more["Medusa, light"]["1"], more["Medusa, light"]["16"]
    assert (first["params"], round(first["gflops"], 6)) == (last["params"], round(last["gflops"], 6))
    yield f"adds {first['params'] / 1e6:.2f} M parameters and {first['gflops']:.2f} GFLOPs"
    rival = more["MTI-Net, tricks"]
    yield f"adds {rival['1']['params'] / 1e6:.2f} M and {rival['1']['gflops']:.2f} GFLOPs"
    yield f"{rival['16']['params'] / 1e6:.1f} M and {rival['16']['gflops']:.1f} GFLOPs"


def test_every_figure_of_what_we_found_is_that_of_the_measurements() -> None:
    generated = r"<!-- claims:begin -->.*<!-- claims:end -->"  # tests/claims compares it with the results
    page = " ".join(re.sub(generated, "", read("found.md"), flags=re.DOTALL).split())
    expected = list(figures())
    for words in expected:
        assert words in page, words
    # No figure stands on the page that is in none of them, but for sizes and names.
    rest = page
    for words in expected:
        rest = rest.replace(words, "")
    left = re.findall(r"[+-]?\d+\.\d+", rest)
    assert left == []


def messages() -> str:
    """Every text in the sources, with … for what is filled in."""
    found = []
    for top in ("medusa_cl", "strategies", "scenarios", "configs"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                found += list(texts(ast.parse(path.read_text(encoding="utf-8"))))
    return "\n".join(found)


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_that_is_explained_is_one_that_the_code_has() -> None:
    known = messages()
    quoted = [
        q for line in re.findall(r"^### (.*)$", read("errors.md"), re.MULTILINE) for q in re.findall("`(.*?)`", line)
    ]
    assert len(quoted) > 20
    for message in quoted:
        assert len(message.replace("…", "").strip()) >= 10
        assert message in known, message


@pytest.mark.parametrize("name", OURS)
def test_what_pages_tell_to_type_is_known(name: str) -> None:
    text = read(name)
    for line in re.findall(r"^python -m medusa_cl\.run(.*)$", text, re.MULTILINE):
        check_overrides(line.split("#")[0].split())
    for target in re.findall(r"`?\bmake (\w+)`?", "".join(re.findall(r"`[^`]*`|^make .*$", text, re.MULTILINE))):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for script in re.findall(r"`python ([\w/]+\.py)`", text):
        assert (ROOT / script).is_file(), script


def test_every_switch_of_the_reconstruction_is_there() -> None:
    """Each `key=value` of the table is a key that is known, with a value that its builder takes."""
    choices = read("reconstructed.md").split("## What is our choice")[1].split("\n## ")[0]
    rows = [line.rsplit("|", 2)[1] for line in choices.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 12
    switches = [code for row in rows for code in re.findall(r"`([^`]+)`", row) if "." in code or "=" in code]
    of_tasks = [code for code in switches if code.startswith(("DenseTask.", "tasks."))]
    for _, name in (code.split("(")[0].split(".") for code in of_tasks):
        assert name in tasks.BUILT_IN or name in tasks.DenseTask.__dataclass_fields__, name
    pairs = [code.partition("=")[::2] for code in switches if code not in of_tasks]
    check_overrides([f"{key.removesuffix('.*')}={value if value.strip('.[]') else 'null'}" for key, value in pairs])


def test_links_of_pages_lead_somewhere_on_github_too() -> None:
    for path in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", path.read_text(encoding="utf-8")):
            made = {pages.TUTORIAL, pages.CONFIGURATION, pages.COMMANDS, *pages.COPIED}
            target = os.path.normpath(path.parent / link)
            there = os.path.exists(target) or os.path.relpath(target, DOCS) in made
            assert there, (path.name, link)


# ---- how to cite


def test_the_citation_file_is_whole_and_the_page_agrees_with_it() -> None:
    """The keys that version 1.2.0 of the format asks for, of the software and of the paper."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    assert (cff["cff-version"], cff["type"], cff["version"]) == ("1.2.0", "software", medusa_cl.__version__)
    released = date.fromisoformat(cff["date-released"])
    assert f"year    = {{{released.year}}}" in read("cite.md")
    (paper,) = cff["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["type"] == "conference-paper"
    software, cited = re.findall(r"```bibtex\n(.*?)```", read("cite.md"), re.DOTALL)
    assert f"version = {{{cff['version']}}}" in software
    assert f"license = {{{cff['license']}}}" in software
    (author,) = cff["authors"]
    assert author["name"] in software.replace("\\_", "_")
    names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    pages_of_it = f"{paper['start']}--{paper['end']}"
    for said in (paper["title"], names, str(paper["year"]), pages_of_it, paper["doi"], paper["collection-title"]):
        assert f"{{{said}}}" in cited
    assert paper["identifiers"][0]["value"] in cited
