"""ACT: distribution records, networks by space, observation normaliser."""
