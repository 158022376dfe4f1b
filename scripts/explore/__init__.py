"""The sections of ``klrl explore-kl``, one file each, and their shared style and report."""
