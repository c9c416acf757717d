"""Who writes the profiles: one interface, and an engine behind each value of `llm` in a study."""
