"""What was measured, as Markdown, as JSON and as plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.runner import Result, Settings
from benchmarks.works import PEERS
from pylibevent import version

FULL = 0.9  # of a processor's time: all that can be had, nearly
COLUMNS = {  # figure of a sample: heading, format
    "cpu_us": ("CPU, µs", "{:.2f}"),
    "calls": ("system calls", "{:.2f}"),
    "instructions": ("user instructions", "{:,.0f}"),
    "p50_ms": ("p50, ms", "{:.2f}"),
    "p99_ms": ("p99, ms", "{:.2f}"),
    "kib": ("KiB a connection", "{:.2f}"),
    "add_ns": ("added, ns", "{:,.0f}"),
    "fire_ns": ("fired, ns", "{:,.0f}"),
}
COLOURS = {"C": "#7f7f7f", "pylibevent": "#c44e52", "uvloop": "#4c72b0", "asyncio": "#8172b3"}
STYLES = {"streams": "--", "readlines": "--", "shipped": ":", "epoll": ":"}


@dataclass
class Spread:
    median: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """The bounds too, if there are any."""
        if self.low == self.high:
            return form.format(self.median)
        return f"{form} ({form} to {form})".format(self.median, self.low, self.high)


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def values(result: Result, peer: str) -> list[float]:
    return [sample[result.work.value] for sample in result.samples[peer]]


def ratios(result: Result, peer: str, reference: str) -> Spread:
    """To the reference's value in the same round."""
    pairs = zip(values(result, peer), values(result, reference), strict=True)
    return spread([mine / other for mine, other in pairs])


def figure(result: Result, peer: str, name: str) -> float | None:
    """The median of one figure; None where it was not measured."""
    if name == "calls":
        return sum(result.counts[peer].values()) if peer in result.counts else None
    found = [sample[name] for sample in result.samples[peer] if name in sample]
    return statistics.median(found) if found else None


def references(result: Result) -> list[str]:
    wanted = dict.fromkeys([result.work.reference, "c", "uvloop"])
    return [peer for peer in wanted if peer in result.samples]


# ---- Markdown ----


def table(result: Result) -> str:
    work = result.work
    compared = references(result)
    columns = [
        name
        for name in COLUMNS
        if name != work.value and any(figure(result, p, name) is not None for p in result.samples)
    ]
    heads = ["", work.unit, *[f"x {work.peer_title(peer)}" for peer in compared]]
    heads += [COLUMNS[name][0] for name in columns]
    lines = [row(heads), row(["---", *["---:"] * (len(heads) - 1)])]
    for peer in result.samples:
        mine = spread(values(result, peer))
        cells = [work.peer_title(peer) + mark(result, peer)]
        cells.append(mine.text("{:,.0f}" if mine.median >= 100 else "{:,.2f}"))
        for other in compared:
            same = peer == other
            cells.append("1" if same else ratios(result, peer, other).text("{:.2f}"))
        for name in columns:
            number = figure(result, peer, name)
            cells.append("" if number is None else COLUMNS[name][1].format(number))
        lines.append(row(cells))
    better = "Lower is better." if work.lower_is_better else "Higher is better."
    return f"### {work.title}\n\n{better}\n\n" + "\n".join(lines) + "\n"


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def mark(result: Result, peer: str) -> str:
    """Where the load had no time left and the server had, which might do more than that."""
    load, server = figure(result, peer, "load"), figure(result, peer, "server")
    return " \\*" if load and server and load >= FULL > server else ""


def markdown(results: Sequence[Result], settings: Settings) -> str:
    about = machine()
    software = ", ".join(f"{name} {number}" for name, number in about["software"].items())
    text = (
        f"{software}; {about['system']}, {about['processors']} processors. "
        f"Rounds: {settings.rounds}; windows of {settings.window:g} s. "
        "Medians of the rounds, and of the ratios within a round; "
        "in brackets the lowest and the highest.\n"
        "\\*: the load had no processor time left, and the server had.\n"
    )
    return "\n".join([text, *[table(result) for result in results]])


# ---- JSON ----


def machine() -> dict[str, Any]:
    """In general terms."""
    software = {platform.python_implementation(): platform.python_version(), "libevent": version()}
    for name in ("pylibevent", "uvloop", "gevent"):
        try:
            software[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} on {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)),
        "software": software,
    }


def write_json(path: Path, results: Sequence[Result], settings: Settings) -> None:
    found = {
        "machine": machine(),
        "settings": asdict(settings),
        "works": {
            result.work.name: {
                "title": result.work.title,
                "unit": result.work.unit,
                "value": result.work.value,
                "lower_is_better": result.work.lower_is_better,
                "samples": result.samples,
                "counts": result.counts,
            }
            for result in results
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


# ---- plots ----


def colour(peer: str) -> str:
    title = PEERS[peer].title
    return next((c for start, c in COLOURS.items() if title.startswith(start)), "#55a868")


def write_plots(directory: Path, results: Sequence[Result]) -> None:
    """One plot of bars for each work, and lines for the echo server and the chain."""
    import matplotlib as mpl

    mpl.use("svg")
    # No date and no random name in it: the same numbers make the same file.
    mpl.rcParams.update({"svg.hashsalt": "pylibevent", "svg.fonttype": "none", "font.size": 9})
    directory.mkdir(parents=True, exist_ok=True)
    for result in results:
        bars(directory / f"{result.work.name}.svg", result)
    echoes = [r for r in results if r.work.name.startswith("echo-") and r.work.size == 64]
    lines(directory / "echo.svg", "echo, one line a message", "connections", echoes)
    chains = [r for r in results if r.work.kind == "chain" and r.work.active_pairs > 1]
    lines(directory / "chain.svg", "events, 100 descriptors active", "socket pairs", chains)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def new_figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bars(path: Path, result: Result) -> None:
    work, peers = result.work, list(result.samples)
    found = [spread(values(result, peer)) for peer in peers]
    figure, axes = new_figure(0.8 + 0.3 * len(peers))
    reach = [[s.median - s.low for s in found], [s.high - s.median for s in found]]
    axes.barh(
        [work.peer_title(peer).replace("`", "") for peer in peers],
        [one.median for one in found],
        xerr=reach,
        color=[colour(peer) for peer in peers],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    axes.invert_yaxis()
    better = "less is better" if work.lower_is_better else "more is better"
    axes.set(title=work.title, xlabel=f"{work.unit} ({better})")
    axes.locator_params(axis="x", nbins=6)
    thousands(axes.xaxis)
    save(figure, path)


def lines(path: Path, title: str, label: str, results: Sequence[Result]) -> None:
    if len(results) < 2:
        return
    count: Callable[[Result], int] = lambda r: r.work.pairs or r.work.connections  # noqa: E731
    results = sorted(results, key=count)
    figure, axes = new_figure(4)
    for peer in results[0].samples:
        having = [r for r in results if peer in r.samples]
        axes.plot(
            [count(r) for r in having],
            [spread(values(r, peer)).median for r in having],
            marker="o",
            linestyle=STYLES.get(peer.partition("-")[2] or peer, "-"),
            color=colour(peer),
            label=results[0].work.peer_title(peer).replace("`", ""),
        )
    axes.set(title=title, xlabel=label, ylabel=results[0].work.unit, xscale="log", ylim=(0, None))
    axes.set_xticks([count(r) for r in results], [f"{count(r):,}" for r in results], minor=False)
    axes.minorticks_off()
    thousands(axes.yaxis)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save(figure, path)


def thousands(axis: Any) -> None:
    axis.set_major_formatter("{x:,g}")
