"""The report of a comparison: tables (report.md), and a page with plots (report.html)."""

import html
import json
from statistics import median

from .chart import OURS, Bar, bars, dots
from .scenarios import SCENARIOS


class Row:
    """What the rounds of one gateway in one scenario came to."""

    def __init__(self, gateway, records, references):
        self.gateway, self.records = gateway, records
        self.values = [record["value"] for record in records]
        # Both of the same round: what else the machine did then, it did to both.
        pairs = [(record, record.get("against", references.get(record["round"]))) for record in records]
        self.ratios = [record["value"] / against for record, against in pairs if against]

    def of(self, name):
        """The median of something that was seen besides, if it was."""
        seen = [record[name] for record in self.records if name in record]
        return median(seen) if seen else None


def rows_of(name, records):
    """The rows of a scenario, in the order of its gateways, and what failed."""
    scenario = SCENARIOS[name]
    mine = [record for record in records if record["scenario"] == name]
    good = [record for record in mine if "failed" not in record]
    references = {record["round"]: record["value"] for record in good if record["gateway"] == scenario.against}
    order = list(dict.fromkeys(record["gateway"] for record in mine))
    rank = ["nginx", "nginx-lua", "haproxy", "envoy", "tollhouse", "tollhouse, answers filtered", "tollhouse, requests held",
            "tollhouse, full path", "origin alone"]
    rows = [Row(gateway, [one for one in good if one["gateway"] == gateway], references) for gateway in order]
    rows = sorted((row for row in rows if row.values), key=lambda row: rank.index(row.gateway))
    return rows, [record for record in mine if "failed" in record]


def goal_of(scenario, row):
    """What is asked of this row: (the most allowed, what it has); None if nothing is."""
    if row.gateway == "tollhouse" and scenario.limit:
        return scenario.limit, median(row.values)
    goal = {"tollhouse": scenario.goal, "tollhouse, full path": scenario.goal_full}.get(row.gateway)
    return (goal, median(row.ratios)) if goal and row.ratios else None


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    return f"{number(median(values))} ({number(min(values))}-{number(max(values))})" if values else ""


def cells(scenario, row):
    goal = goal_of(scenario, row)
    verdict = "" if goal is None else f"at most {number(goal[0])}: {'met' if goal[1] <= goal[0] else 'missed'}"
    memory = row.of("memory_kib")
    return [row.gateway, spread(row.values), spread(row.ratios), verdict, number(row.of("rps")), number(row.of("p50_ms")),
            number(row.of("p99_ms")), number(memory and memory / 1024), number(row.of("start_seconds"))]


def head(scenario):
    what = "CPU µs a request" if scenario.unit == "µs" else scenario.unit
    return ["gateway", f"{what}, median (min-max)", f"× {scenario.against}, median (min-max)", "goal", "requests/s", "p50 ms",
            "p99 ms", "MiB", "start s"]


def summary(results):
    """A row for each scenario: everybody's median as a share of the one they are compared with."""
    gateways = ["nginx", "haproxy", "envoy", "tollhouse", "tollhouse, full path"]
    table = [["scenario", *gateways, "goal"]]
    for name, (rows, _) in results.items():
        scenario, line = SCENARIOS[name], {}
        for row in rows:
            shown = number(median(row.ratios)) if row.ratios and not scenario.limit else f"{number(median(row.values))} {scenario.unit}"
            line["nginx" if row.gateway == "nginx-lua" else row.gateway] = shown
        goals = [goal_of(scenario, row) for row in rows]
        verdicts = [f"{number(most)} {'met' if has <= most else 'missed'}" for most, has in filter(None, goals)]
        table.append([scenario.title, *(line.get(gateway, "") for gateway in gateways), ", ".join(verdicts)])
    return table


def plot(scenario, rows):
    """Bars of what is compared: ratios where there are any, with goals."""
    by_ratio = not scenario.limit and any(row.ratios for row in rows)
    of = [(row, row.ratios if by_ratio else row.values) for row in rows]
    drawn = []
    for row, values in of:
        goal = goal_of(scenario, row)
        if values:
            drawn.append(Bar(row.gateway, median(values), min(values), max(values), goal and goal[0], row.gateway.startswith("tollhouse")))
    unit = f"× {scenario.against}" if by_ratio else scenario.unit
    return bars(scenario.title, unit, drawn)


def overview(results):
    """All ratios in one plot."""
    colors = {"nginx": "#5a6675", "haproxy": "#6a51a3", "envoy": "#c8641b", "tollhouse": OURS, "tollhouse, full path": "#7fc4cd"}
    rows = {}
    for name, (of, _) in results.items():
        scenario = SCENARIOS[name]
        shares = {row.gateway.removesuffix("-lua"): median(row.ratios) for row in of if row.ratios}
        if shares and not scenario.limit:
            rows[scenario.title] = shares
    return dots("CPU time for each request", "as a share of nginx's (10,000 routes: of its own with one); left is better", rows, colors)


def markdown(table):
    first, *rest = table
    lines = [first, ["---"] * len(first), *rest]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def table_html(table):
    def line(cells, tag):
        made = []
        for cell in cells:
            kind = ' class="missed"' if "missed" in cell else ' class="met"' if " met" in f" {cell}" and tag == "td" else ""
            made.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    return f"<table>{line(table[0], 'th')}{''.join(line(one, 'td') for one in table[1:])}</table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #dde3ea; } th { color: #5a6675; font-weight: 600; }
th:first-child, td:first-child { text-align: left; } .met { color: #1a7f4b; } .missed { color: #b3261e; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; font-size: .85rem; color: #5a6675; } dd { margin: 0; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } .failed { color: #b3261e; }
"""


def write(into):
    """Reads what was measured into a folder, and writes the report beside it."""
    records = [json.loads(line) for line in (into / "records.jsonl").read_text().splitlines()]
    about = json.loads((into / "about.json").read_text())
    results = {name: rows_of(name, records) for name in SCENARIOS if any(one["scenario"] == name for one in records)}
    note = ("Smaller is better everywhere. Ratios are of two figures of the same round, so what else the machine did meanwhile is in "
            "both; what is within a tenth of another is the same. `requests/s` is how fast this client drove it, not what it can do.")
    (into / "overview.svg").write_text(overview(results))
    text = ["# Side by side", "", note, "", *(f"* {key}: {value}" for key, value in about.items()), "", "![All ratios](overview.svg)", "",
            markdown(summary(results))]
    page = ["<!doctype html><html lang=en><meta charset=utf-8><title>Side by side</title>", f"<style>{STYLE}</style>",
            "<h1>Side by side</h1>", f"<p>{html.escape(note)}</p>", "<dl>",
            *(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in about.items()), "</dl>",
            f"<h2>Summary</h2>{overview(results)}<div class=wide>{table_html(summary(results))}</div>"]
    for name, (rows, failures) in results.items():
        scenario = SCENARIOS[name]
        table = [head(scenario), *(cells(scenario, row) for row in rows)]
        picture = plot(scenario, rows)
        (into / f"{name}.svg").write_text(picture)
        text += ["", f"## {scenario.title} (`{name}`)", "", f"![{scenario.title}]({name}.svg)", "", markdown(table)]
        page += [f"<h2>{html.escape(scenario.title)}</h2>", picture, f"<div class=wide>{table_html(table)}</div>"]
        for record in failures:
            text += ["", f"Failed: {record['gateway']}, round {record['round'] + 1}: {record['failed']}"]
            page.append(f"<p class=failed>{html.escape(record['gateway'])}: {html.escape(record['failed'])}</p>")
    (into / "report.md").write_text("\n".join(text) + "\n")
    (into / "report.html").write_text("\n".join(page) + "\n")
    print(f"report: {into}/report.html (tables: report.md)")
