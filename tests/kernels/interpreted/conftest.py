"""These tests run where Triton's interpreter is on, which must be so before Triton is imported: see
test_interpreted.py.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
