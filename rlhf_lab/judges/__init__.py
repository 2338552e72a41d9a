"""AI judges: their verdicts in one table, their bias measured, and what swapping the order mends."""
