"""The sections of the page: what is drawn, in which unit, which direction is better, from how many, and what a band means."""
