"""The sweep: plan, check, and run a study's trials on Ray Tune or in a plain loop."""
