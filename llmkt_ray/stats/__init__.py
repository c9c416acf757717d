"""Contrasts with intervals, corrections, power, claims and importance: pure functions on arrays and frames."""
