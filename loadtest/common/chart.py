"""Plots as SVG, by hand: horizontal bars with their spread, and lines over time."""

import html
import math
from dataclasses import dataclass

WIDTH = 860
INK, FAINT, GRID = "#1c2430", "#5a6675", "#dde3ea"
OURS, THEIRS, GOAL = "#0f7b8a", "#a9b4c0", "#b3261e"
LINES = ["#0f7b8a", "#c8641b", "#6a51a3"]


@dataclass
class Bar:
    """A value with the least and the most that was seen, and what was asked for."""

    name: str
    value: float
    least: float
    most: float
    goal: float | None
    ours: bool


def text(x, y, said, size=12, color=INK, anchor="start", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" {more}>{html.escape(said)}</text>'


def line(x, y, to_x, to_y, color=GRID, width=1.0, more=""):
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{color}" stroke-width="{width}" {more}/>'


def picture(width, height, parts, title):
    inside = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(title)}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
            f"\n{inside}\n</svg>\n")


def step(most, about=5):
    """The distance of marks on an axis: 1, 2 or 5 of some power of ten."""
    rough = most / about or 1
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def marks(most):
    """Where marks are on an axis from nothing to somewhat beyond `most`."""
    distance = step(most)
    return [distance * at for at in range(math.ceil(most / distance) + 1)]


def short(value):
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def bars(title, unit, drawn):
    """Bars one below the other; a line through each from the least to the most, and a mark for its goal."""
    left, right, top, row = 170, 110, 44, 30
    axis = marks(max([bar.most for bar in drawn] + [bar.goal or 0 for bar in drawn] + [1e-9]))
    height = top + row * len(drawn) + 34
    scale = (WIDTH - left - right) / axis[-1]
    legend = "   dashed: the goal, at most" if any(bar.goal for bar in drawn) else ""
    parts = [text(0, 18, title, 15, more='font-weight="600"'), text(WIDTH, 18, unit + legend, 12, FAINT, "end")]
    for mark in axis:
        x = left + mark * scale
        parts += [line(x, top - 6, x, height - 26), text(x, height - 10, short(mark), 11, FAINT, "middle")]
    for at, bar in enumerate(drawn):
        y = top + at * row
        middle, end = y + row / 2 - 3, left + bar.value * scale
        least, most = left + bar.least * scale, left + bar.most * scale
        parts += [
            text(left - 10, middle + 4, bar.name, 13, anchor="end", more='font-weight="600"' if bar.ours else ""),
            f'<rect x="{left}" y="{y}" width="{max(bar.value * scale, 1):.1f}" height="{row - 8}" rx="2" fill="{OURS if bar.ours else THEIRS}"/>',
            line(least, middle + 1, most, middle + 1, INK, 1.5), line(least, middle - 3, least, middle + 5, INK, 1.5),
            line(most, middle - 3, most, middle + 5, INK, 1.5), text(max(end, most) + 8, middle + 5, short(bar.value), 12),
        ]
        if bar.goal:
            x = left + bar.goal * scale
            parts += [line(x, y - 3, x, y + row - 5, GOAL, 2, 'stroke-dasharray="3 2"')]
    return picture(WIDTH, height, parts, title)


def dots(title, unit, rows, colors, most=3.0):
    """A row for each name, with a dot for each value: name to {who: value}; what is beyond `most` sits at the edge."""
    left, right, top, row = 250, 40, 64, 26
    height, scale = top + row * len(rows) + 34, (WIDTH - left - right) / most
    parts = [text(0, 18, title, 15, more='font-weight="600"'), text(WIDTH, 18, unit, 12, FAINT, "end")]
    x = 0
    for who, color in colors.items():
        parts += [f'<circle cx="{x + 6}" cy="38" r="5" fill="{color}"/>', text(x + 16, 42, who, 12)]
        x += 34 + 7 * len(who)
    for mark in [one for one in marks(most) if one <= most]:
        at = left + mark * scale
        parts += [line(at, top - 6, at, height - 26, FAINT if mark == 1 else GRID, 1.2 if mark == 1 else 1),
                  text(at, height - 10, short(mark), 11, FAINT, "middle")]
    for number, (name, values) in enumerate(rows.items()):
        y = top + number * row + row / 2
        parts += [text(left - 12, y + 4, name, 12, anchor="end"), line(left, y, WIDTH - right, y)]
        for who, color in colors.items():
            if who in values:
                at, beyond = left + min(values[who], most) * scale, values[who] > most
                parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="{6 if who.startswith("tollhouse") else 5}" fill="{color}" opacity="0.9"/>')
                if beyond:
                    parts.append(text(at + 8, y + 4, short(values[who]), 11, color))
    return picture(WIDTH, height, parts, title)


def lines(title, unit, series, events=(), height=190):
    """Lines over seconds: name to (second, value) pairs; `events` are (second, name) and drawn as upright lines."""
    left, right, top, bottom = 64, 16, 44, 30
    points = [point for of in series.values() for point in of] or [(0, 0)]
    until = max(max(second for second, _ in points), 1)
    axis = marks(max(max(value for _, value in points), 1e-9))
    across, up = (WIDTH - left - right) / until, (height - top - bottom) / axis[-1]
    parts = [text(0, 18, title, 15, more='font-weight="600"'), text(left, top - 10, unit, 11, FAINT)]
    for mark in axis:
        y = height - bottom - mark * up
        parts += [line(left, y, WIDTH - right, y), text(left - 8, y + 4, short(mark), 11, FAINT, "end")]
    for second in [one for one in marks(until) if one <= until]:
        parts.append(text(left + second * across, height - 10, f"{short(second)} s", 11, FAINT, "middle"))
    for second, name in events:
        x, strong = left + second * across, name == "upgrade"
        parts.append(line(x, top, x, height - bottom, GOAL if strong else FAINT, 1.2 if strong else 0.4, f'opacity="{0.8 if strong else 0.5}"'))
    at = WIDTH
    for color, (name, of) in reversed(list(zip(LINES, series.items()))):
        path = " ".join(f"{left + second * across:.1f},{height - bottom - value * up:.1f}" for second, value in of)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"/>')
        if len(series) > 1:
            parts.append(text(at, 18, name, 12, color, "end"))
            at -= 14 + 7 * len(name)
    return picture(WIDTH, height, parts, title)
