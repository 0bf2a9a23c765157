"""Programs that find a kernel without TCX: sitecustomize.py has how."""

from pathlib import Path

PREFIX = ("env", f"PYTHONPATH={Path(__file__).parent}", "TWCTL_TEST_CLSACT=1")
