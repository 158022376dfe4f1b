"""Shared parts of the verbs: flags, messages, terminals and saved agents."""
