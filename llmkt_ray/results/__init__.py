"""Results of a study: its folder, its lock, its ledger and its card."""
