"""What the front end is told and asks for: runs as they go on, reports, and checks of settings."""
