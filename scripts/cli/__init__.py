"""Flags, messages, terminals and saved agents: what the verbs share."""
