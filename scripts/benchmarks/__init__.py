"""The tables and figures of results, one file for each ``klrl benchmark WHAT``."""
