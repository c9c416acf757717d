"""Study files, and the entry point that a submitted job starts."""
