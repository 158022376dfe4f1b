"""The ``klrl`` command: one thin file per verb, also run as ``python scripts/VERB.py``."""
