"""README and the guides of deploy/: their commands parse, their examples run and print the figures shown,
and every key, metric, topic, role and log line that they name exists."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from pipeline.app import cli
from pipeline.app.config import load_settings
from pipeline.persistence.compatibility import changes
from pipeline.service.metrics import Metrics
from pipeline.settings import ROLE_CODES, Settings

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "deploy/guides"
DOMAINS = ("shop", "news", "video", "music")
GUIDE_NAMES = (*DOMAINS, "troubleshooting")
BLOCK = re.compile(r"(?:^ {4,}\S.*\n)+", re.M)  # a block of code, indented
SPAN = re.compile(r"`([^`\n]+)`")
TOLERANCE = 0.03  # of a figure: sums differ a little between machines


def text_of(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text("utf-8")


def blocks(name: str) -> list[list[str]]:
    return [[line.strip() for line in block.splitlines()] for block in BLOCK.findall(text_of(name))]


def example_of(domain: str) -> Path:
    (path,) = (GUIDES / "examples").glob(f"{domain}.*")
    return path


def settings_of(domain: str) -> Settings:
    return load_settings(ROOT / f"deploy/config/{domain}.toml", [], {})


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield every line of README and of a guide that calls afresh, with the document's name."""
    for path in (ROOT / "README.md", *sorted(GUIDES.glob("*.md"))):
        text = path.read_text("utf-8")
        lines = [line.strip() for block in BLOCK.findall(text) for line in block.splitlines()]
        lines += [span for span in SPAN.findall(text) if " --" in span]
        yield from ((path.stem, line) for line in lines if line.startswith("afresh "))


@pytest.mark.parametrize(("guide", "line"), list(command_lines()))
def test_every_command_shown_parses(guide: str, line: str) -> None:
    _, name, *words = shlex.split(line, comments=True)
    assert name in cli.COMMANDS
    args = cli._parser(name, cli._load(name)).parse_args(words)
    if args.config is not None and str(args.config) not in ("YOURS", "FILE", "my.toml"):
        load_settings(ROOT / args.config, args.sets, {})


def test_the_configuration_that_the_readme_shows_is_valid(tmp_path: Path) -> None:
    (config,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "my.toml").write_text(config, "utf-8")
    load_settings(tmp_path / "my.toml", [], {})


def evaluations(guide: str) -> list[tuple[str, dict[str, list[float]]]]:
    """Return the calls of `evaluate` in a guide, each with the rows of the table behind it."""
    shown = []
    parts = blocks(guide)
    for block, table in pairwise(parts):
        if block[0].startswith("afresh evaluate"):
            rows = takewhile(lambda row: row, (row.split() for row in table[1:]))
            shown.append((block[0], {row[0]: [float(figure) for figure in row[1:]] for row in rows}))
    return shown


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_example_prints_the_figures_that_the_guide_shows(
    domain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert evaluations(domain)
    for line, table in evaluations(domain):
        assert cli.main([*shlex.split(line)[1:], "--json"]) == 0
        got = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert got["rejected"] == {}
        assert set(table) == set(got["models"])
        best = max(figures["ndcg@10"] for name, figures in got["models"].items() if name != "attention")
        for name, figures in got["models"].items():
            now = [figures["ndcg@10"], figures["ndcg@10"] / best, figures["hr@10"], figures["mrr@10"]]
            now += [figures[segment]["ndcg@10"] for segment in ("cold", "warm")]
            now += [quarter["ndcg@10"] for quarter in figures["quarters"]]
            assert table[name][:1] + table[name][2:] == pytest.approx(now[:1] + now[2:], abs=TOLERANCE), name
            assert table[name][1] == pytest.approx(now[1], abs=10 * TOLERANCE), name


def test_old_files_do_not_expire(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert settings_of("news").limits.item_ttl_days < 30  # the example's events are older
    file, config = "deploy/guides/examples/news.csv", "deploy/config/news.toml"
    options = ("--models", "popularity", "--events", "400", "--batch", "16", "--json")
    assert cli.main(["evaluate", file, "--config", config, *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["models"]["popularity"]["hr@10"] > 0.1


def test_the_warm_start_of_a_guide_uses_the_configuration_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = [line for block in blocks("shop") for line in block if line.startswith("afresh train")]
    words = shlex.split(line)[1:]
    config, folder = ROOT / words[words.index("--config") + 1], tmp_path / "state"
    assert words[-2:] == ["--checkpoint", "./state/shop"]
    assert settings_of("shop").checkpoint.path == words[-1]
    assert cli.main([*words[:-1], str(folder), "--events", "200"]) == 0
    capsys.readouterr()
    (manifest,) = (folder / "@trained").glob("manifest-*.json")
    saved = json.loads(manifest.read_text("utf-8"))["configuration"]
    touched = {
        change.key for change in changes(saved, load_settings(config, [f"checkpoint.path={folder}"], {}))
    }
    assert touched <= {"kafka.worker_id"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_example_is_small_and_holds_the_records_shown(domain: str) -> None:
    path = example_of(domain)
    assert path.stat().st_size < 150_000
    rows = path.read_text("utf-8").splitlines()
    assert 200 <= len(rows) <= 2_001
    (shown,) = [block for block in blocks(domain) if block[0] in rows]
    assert set(shown) <= set(rows)


@pytest.mark.parametrize("domain", DOMAINS)
def test_roles_and_weights_shown_are_those_of_the_configuration(domain: str) -> None:
    events, codes = settings_of(domain).events, {code: role for role, code in ROLE_CODES.items()}
    table = re.search(r"^\| type \| role .*\n\|.*\n((?:\|.*\n)+)", text_of(domain), re.M)
    assert table is not None
    seen = 0
    for row in table[1].splitlines():
        types, role, *more = (cell.strip() for cell in row.strip("|").split(" | "))
        weights = more[0].split(", ") if re.match(r"\d", more[0]) else []
        for place, name in enumerate(SPAN.findall(types)):
            seen += 1
            assert codes[events.role(name)] == role.split(",")[0], name
            if weights:
                assert events.weight(name) == float(weights[min(place, len(weights) - 1)]), name
    assert seen >= 3


@pytest.mark.parametrize("name", GUIDE_NAMES)
def test_every_setting_that_a_guide_names_exists(name: str) -> None:
    tables = {table: getattr(Settings(), table) for table in Settings.__struct_fields__}
    topics = {"events.dead-letter", "events.drift"}
    found = 0
    for span in SPAN.findall(text_of(name)):
        for table, key in re.findall(r"(?<![\w./-])([a-z]+)\.([a-z_]+)(?![\w/]|\.(?:gz|csv))", span):
            if table in tables and span not in topics and key not in ("csv", "jsonl"):
                found += 1
                assert hasattr(tables[table], key), span
    assert found > 5


@pytest.mark.parametrize("name", GUIDE_NAMES)
def test_every_metric_that_a_guide_names_exists(name: str) -> None:
    known = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics().registry.collect()
    }
    named = set(re.findall(r"\bafresh_\w+", text_of(name)))
    assert named
    assert named <= known


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_topic_that_a_guide_names_is_in_its_configuration(domain: str) -> None:
    topics = settings_of(domain).topics
    known = {*topics.event_topics(), topics.items, topics.recommendations, topics.dead_letters, topics.drift}
    named = set(re.findall(rf"(?<![\w/]){domain}\.(?!md|toml|csv|jsonl)[a-z-]+", text_of(domain)))
    assert {topics.items, topics.recommendations, topics.dead_letters} <= named <= known


@pytest.mark.parametrize("name", GUIDE_NAMES)
def test_links_and_paths_of_a_guide_exist(name: str) -> None:
    text = text_of(name)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (GUIDES / link).is_file(), link
    for path in re.findall(r"(?<![\w/.-])(?:deploy|pipeline|tests)/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path


def test_the_way_of_one_event_names_functions_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    way = text.partition("## The way of one event")[2].partition("\n## ")[0]
    rows = [row.split(" | ")[1:] for row in way.splitlines() if row.startswith("| ") and ".py" in row]
    assert len(rows) >= 10
    for files, functions in rows:
        code = "".join((ROOT / path).read_text("utf-8") for path in SPAN.findall(files))
        for name in SPAN.findall(functions):
            *of_class, function = name.split(".")
            assert all(f"class {part}" in code for part in of_class), name
            assert f"def {function}(" in code, name


# Log lines


def template(node: ast.AST) -> str:
    """Return a text of the code with a zero byte in the place of each value."""
    if isinstance(node, ast.Constant):
        value = node.value if isinstance(node.value, str) else ""
        return re.sub(r"%[-.\d]*[sdgrf]", "\0", value)
    if isinstance(node, ast.JoinedStr):
        parts = (part for part in node.values)
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in parts)  # type: ignore[misc]
    return ""


@cache
def log_lines() -> list[re.Pattern[str]]:
    """Return patterns of what the code can print: whole texts and their beginnings that end with a clause."""
    texts: set[str] = set()
    for package in ("pipeline", "consumers", "producers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                whole = template(node).strip()
                ends = [match.start() for match in re.finditer(r"[.:;](?= )", whole)]
                texts.update(whole[:end].rstrip(".:;") for end in (*ends, len(whole)))
    return [
        re.compile(".+?".join(map(re.escape, text.split("\0"))), re.S)
        for text in texts
        if len(text.replace("\0", "")) >= 15
    ]


def is_printed(line: str) -> bool:
    return any(pattern.fullmatch(line.rstrip(".:;")) for pattern in log_lines())


def test_every_log_line_that_is_quoted_exists() -> None:
    quoted = [" ".join(block) for block in blocks("troubleshooting")]
    lines = [line for line in quoted if not line.startswith(("afresh_", "->"))]
    assert len(lines) >= 15
    for line in lines:
        assert is_printed(line), line
    assert not is_printed("the model has lost its mind; expected it back")
