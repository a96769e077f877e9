"""Writes the table in docs/reference/hostile.md from the accounts in docs/results/hostile/.

    python dev/hostile_table.py

`bash launch/test.sh --hostile` writes the accounts; tests/test_docs.py asserts that page and accounts agree.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, ACCOUNTS = ROOT / "docs" / "reference" / "hostile.md", ROOT / "docs" / "results" / "hostile"
BEGIN, END = "<!-- from docs/results/hostile -->\n", "<!-- end -->\n"
HEAD = "| what | tried | done | refused in one sentence | failed | seed | minutes |\n|---|---|---|---|---|---|---|\n"


def table() -> str:
    """A row for each account, in the order of their names."""
    accounts = [json.loads(path.read_text()) for path in sorted(ACCOUNTS.glob("*.json"))]
    rows = [
        f"| {account['kind']} | {account['tried']:,} | {account['accepted']:,} | {account['refused']:,}"
        f" | {account['failed']:,} | {account['seed']} | {account['seconds'] / 60:.1f} |\n"
        for account in accounts
    ]
    return HEAD + "".join(rows)


def page() -> str:
    """The page as it has to be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
