"""One declaration for each setting: its values, help, default and relevance.

A dataclass of settings derives from `Settings` and declares every field with `setting` or `section`. Checks, JSON, the
command line's options, the nodes' inputs and the tables of the manual are generated from the declarations.
"""

from .base import Settings
from .declaration import ALWAYS, Alternatives, NodeInput, Section, Setting, When, section, setting

__all__ = ["ALWAYS", "Alternatives", "NodeInput", "Section", "Setting", "Settings", "When", "section", "setting"]
