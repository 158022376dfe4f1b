"""The sections of ``klrl explore-kl``, one file each, and what they share: style and report."""
