"""A report as one page of HTML with its picture, which needs nothing else."""

from __future__ import annotations

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px; }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; } svg { max-width: 100%; }
"""


def page(report: str, overview: str) -> str:
    import markdown  # noqa: PLC0415 - an extra, and only for the page

    title, _, rest = report.removeprefix("# ").partition("\n")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    body = markdown.markdown(rest, extensions=["tables"])
    return f"{head}<h1>{title}</h1>\n{overview}\n{body}\n</html>\n"
