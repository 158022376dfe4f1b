"""Reliability measured: every case is a real process, and every promise a number of cases."""
