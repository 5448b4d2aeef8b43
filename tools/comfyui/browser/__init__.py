"""ComfyUI's page in a browser, used as a user would; needs playwright and Debian's Chromium."""

from .site import CHROMIUM, Site, launch

__all__ = ["CHROMIUM", "Site", "launch"]
