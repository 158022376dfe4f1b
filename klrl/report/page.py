"""One HTML file: tables and charts, the plot library, the numbers; nothing is loaded from anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import klrl
from klrl.report import summary
from klrl.report.audits import SavedAudit, audit_of, read_audit
from klrl.report.charts import SECTIONS, Chart, charts_of
from klrl.report.comparisons import DIVERGENCES, POLICIES, section
from klrl.report.intervals import FEWEST, over_seeds
from klrl.report.payload import payload, points, safe_json
from klrl.report.reading import LoggedRun, read_runs
from klrl.run.directory import versions
from klrl.studies.results import claim
from klrl.studies.results import write as write_file

_NUMBERS = ("environment", "variant", "seeds", "last value, mean over seeds", "smallest", "largest")


def write(paths: Sequence[str | Path], output: str | Path, command: str = "klrl.report.write") -> list[LoggedRun]:
    """Write a report of runs, studies and audits as one HTML file, and return the runs in it.

    Args:
        paths: run directories, and folders of some, such as a study's; files of ``klrl audit --json``.
        output: the file; an older one is replaced in one step.
        command: command line, for the page's last line.

    Raises:
        ValueError: a folder has no run in it, a file is no audit, or the extra ``report`` is not installed.
        OSError: a path cannot be read, or the file not be written.
    """
    check_extra()
    claim(Path(output))
    named = [path for path in map(Path, paths) if path.exists() and not path.is_dir()]
    audits = [read_audit(path) for path in {path.resolve(): path for path in named}.values()]
    runs = read_runs(path for path in map(Path, paths) if path not in named)
    title = f"Report on {', '.join(Path(path).resolve().name for path in paths)}"
    write_file(Path(output), page(runs, audits, title=title, command=command))
    return runs


def write_audit(record: dict[str, Any], output: Path, command: str) -> None:
    """Write a report of an audit alone.

    Args:
        record: the audit as plain JSON.
        output: the file; an older one is replaced in one step.
        command: command line, for the page's last line.

    Raises:
        OSError: the file cannot be written.
    """
    audit = audit_of(record | {"versions": versions()})
    write_file(output, page([], [audit], title=f"Audit on {audit.env}", command=command))


def has_extra() -> bool:
    """Tell whether the plot library is installed."""
    return importlib.util.find_spec("bokeh") is not None


def check_extra() -> None:
    """Refuse to begin without the plot library.

    Raises:
        ValueError: names the extra.
    """
    if not has_extra():
        raise ValueError("the report needs bokeh: pip install 'klrl[report]'")


def page(
    runs: Sequence[LoggedRun], audits: Sequence[SavedAudit] = (), title: str = "Report", command: str = "klrl.report"
) -> str:
    """Return the report as HTML; all text of the runs and audits is escaped."""
    from jinja2 import Environment, PackageLoader

    charts, compared = charts_of(runs), [section(audit) for audit in audits]
    data, numbers = payload(runs, charts)
    data["audits"] = [[chart["plots"] for chart in audit["charts"]] for audit in compared]
    drawn = ["plots.js", *(["means.js"] if compared else []), "page.js"] if charts or compared else []
    env = Environment(loader=PackageLoader("klrl.report", ""), autoescape=True, trim_blocks=False)
    table = env.get_template("table.html").module.table  # type: ignore[attr-defined]
    here = files("klrl.report")
    return env.get_template("page.html").render(
        table=table,
        title=title,
        lead=_lead(runs, audits),
        version=klrl.__version__,
        style=(here / "page.css").read_text(encoding="utf-8"),
        scripts=[*library(), *((here / name).read_text(encoding="utf-8") for name in drawn)] if drawn else [],
        data=safe_json(data),
        numbers=numbers,
        drawn=drawn,
        audits=compared,
        policies_head=POLICIES,
        divergences_head=DIVERGENCES,
        sections=[*_sections(charts, runs, data["envs"])],
        numbers_head=_NUMBERS,
        variants=data["variants"],
        envs=data["envs"],
        seeds=data["seeds"],
        fewest=FEWEST,
        command=command,
        **_overview(runs),
    )


def library() -> list[str]:
    """Return BokehJS with its plotting interface, as scripts of a page."""
    from bokeh.resources import Resources

    return Resources(mode="inline", components=["bokeh", "bokeh-api"], log_level="error").js_raw


def _lead(runs: Sequence[LoggedRun], audits: Sequence[SavedAudit]) -> str:
    return "; ".join([*([_lead_of(runs)] if runs else []), *([_count(audits, "audit")] if audits else [])])


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _lead_of(runs: Sequence[LoggedRun]) -> str:
    done = sum(run.status == "done" for run in runs)
    updates = sum(run.updates for run in runs)
    trained = [run for run in runs if run.status != "log"]
    share = f"{done} of them " if done < len(runs) else "all of them " if done > 1 else ""
    finished = f", {share}finished" if trained else ""
    return f"{_count(runs, 'run')}{finished}; {updates:,} update{'s' * (updates != 1)}"


def _overview(runs: Sequence[LoggedRun]) -> dict[str, Any]:
    """Return what the overview and the failures show."""
    groups = summary.groups(runs)
    return {
        "results_head": summary.RESULTS,
        "results": [summary.results(group) for group in groups],
        "differences": summary.differences(groups),
        "reasons": summary.stop_reasons(groups),
        "commands": [_command(group) for group in groups if summary.command(group.runs[0].config)],
        "versions": summary.versions(runs),
        "runs": [_row(run) for run in runs],
        "failures": summary.failures(runs),
    }


def _command(group: summary.Group) -> dict[str, Any]:
    seeds = [run.seed for run in group.runs if run.seed is not None]
    return {
        "env": group.env,
        "variant": group.variant,
        "command": summary.command(group.runs[0].config),
        "seeds": seeds,
    }


def _row(run: LoggedRun) -> list[str]:
    steps = f"{run.steps[-1]:,.0f}" if run.updates and run.counts_steps else "–"
    times = {0: "", 1: "once"}.get(run.resumed, f"{run.resumed} times")
    return [run.name, run.status, f"{run.updates:,}", steps, times, str(run.directory)]


def _sections(charts: Sequence[Chart], runs: Sequence[LoggedRun], envs: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Yield the sections that have charts."""
    groups = summary.groups(runs)
    for key, title in SECTIONS.items():
        mine = [_chart(chart, groups, envs) for chart in charts if chart.section == key]
        if mine:
            yield {"key": key, "title": title, "charts": mine}


def _chart(chart: Chart, groups: Sequence[summary.Group], envs: Sequence[str]) -> dict[str, Any]:
    """Return a chart's words, its places, and its numbers as a table, for those who cannot see it."""
    numbers = []
    for group in groups:
        curves = [points(run, chart)[1] for run in group.measured]
        curves = [y for y in curves if len(y)]
        if curves:
            last = over_seeds([float(y[-1]) for y in curves])
            ends = [summary.number(end, "{:.4g}") for end in (min(map(min, curves)), max(map(max, curves)))]
            mean = summary.with_interval(last, "{:.4g}")
            numbers.append([group.env, group.variant, str(len(curves)), mean, *ends])
    there = {row[0] for row in numbers}
    return {
        "key": chart.key,
        "title": chart.title,
        "about": chart.about,
        "column": chart.column,
        "numbers": numbers,
        "plots": [{"env": i, "name": name} for i, name in enumerate(envs) if name in there],
    }
