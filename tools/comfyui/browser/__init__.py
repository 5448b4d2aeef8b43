"""ComfyUI's page in a browser, used as a user would; needs playwright and Debian's Chromium."""

from .site import CHROMIUM, Site, launch
from .tab import THEMES

__all__ = ["CHROMIUM", "THEMES", "Site", "launch"]
