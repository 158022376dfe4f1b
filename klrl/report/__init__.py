"""SHOW: runs, studies and audits as one HTML file that needs no network.

``write(["studies/a"], "report.html")`` is what ``klrl report`` does: an overview with intervals, learning curves, drift
against its target, what each step did, return against KL spent, audits of saved policies, failures.

The page is drawn by BokehJS (extra ``report``). Its bundle has 1.4 MB and is loaded in 0.3 s by a Chromium that takes
2.5 s for Plotly's 4.8 MB; charts are drawn as fast by both. Vega's comes in a wheel of 33 MB.
"""

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.report.page import write
    from klrl.report.reading import LoggedRun, read_runs

__all__ = ["LoggedRun", "read_runs", "write"]
__getattr__, __dir__ = exports(__name__, {"LoggedRun": "reading", "read_runs": "reading", "write": "page"})
"""Names that take their time to import: numpy, statistics."""
