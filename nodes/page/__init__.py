"""The server half of the front end: progress of runs, reports, and checks of settings."""
