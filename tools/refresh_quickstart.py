#!/usr/bin/env python
"""Copy the result of `make demo` into the documentation: the tables of the quickstart, and a picture of the report.

Run it after `make demo`. The picture needs Chromium on the path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "get-started" / "quickstart.md"
PICTURE = ROOT / "docs" / "images" / "report.png"
TABLES = re.compile(r"^\| arm .*?(?=^## )", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"(<!-- demo: begin -->\n).*?(\n<!-- demo: end -->)", re.DOTALL)


def main(report: Path = ROOT / "output" / "quickstart" / "report") -> int:
    """Refresh the page and the picture, and return the exit status."""
    tables = TABLES.search((report / "summary.md").read_text())
    if tables is None:
        sys.stderr.write(f"{report}/summary.md: no table of arms. Run `make demo` to its end.\n")
        return 2
    page, count = PLACE.subn(lambda place: f"{place[1]}{tables[0].rstrip()}{place[2]}", PAGE.read_text())
    if count != 1:
        sys.stderr.write(f"{PAGE}: the marks of the demo's tables must occur once (got {count}).\n")
        return 2
    PAGE.write_text(page)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.stderr.write("refresh_quickstart: no Chromium on the path; the picture was not refreshed.\n")
        return 2
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,795")
    command = [browser, *options, f"--screenshot={PICTURE}", (report / "index.html").as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
