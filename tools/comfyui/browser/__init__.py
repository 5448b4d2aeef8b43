"""ComfyUI's page in a browser, used as a user would; needs playwright and Debian's Chromium."""

from .site import CHROMIUM, THEMES, Site, launch

__all__ = ["CHROMIUM", "THEMES", "Site", "launch"]
