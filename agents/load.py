"""Old names of what :mod:`klrl.agents` has."""

from klrl.renamed import moved

__getattr__ = moved(__name__, "klrl.agents", {"load_agent": "load_agent", "AGENTS": "AGENTS"})
